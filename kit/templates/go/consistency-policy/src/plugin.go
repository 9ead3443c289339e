// A consistency policy: reads ask few replicas, everything else follows the coordinator's own rule.
package main

import (
	"bytes"

	"example.com/@NAME@/witan"
)

// What the plugin calls itself. A binding by name refers to it by this name.
const (
	name    = "@NAME@"
	version = "0.1.0"
)

// policy is what the binding has configured.
type policy struct {
	// Replicas that must answer a read. The tenant's minimum level goes first.
	reads uint8
}

func (*policy) Describe() witan.Manifest {
	return witan.Manifest{Name: name, Version: version, Hook: "consistency-policy", Deterministic: true}
}

// Configure is called once on every new instance. It takes nothing, or `reads = N` with N from 1 to 5.
func (it *policy) Configure(configuration []byte) []witan.ConfigIssue {
	if len(configuration) == 0 {
		return nil
	}
	number, found := bytes.CutPrefix(configuration, []byte("reads = "))
	if !found || len(number) != 1 || number[0] < '1' || number[0] > '5' {
		return []witan.ConfigIssue{{At: "reads", Problem: "write `reads = N` with a number from 1 to 5"}}
	}
	it.reads = number[0] - '0'
	return nil
}

// required is the number of replicas that a level requires.
func required(level witan.Level, factor uint8) uint8 {
	switch level {
	case witan.LevelOne:
		return 1
	case witan.LevelQuorum:
		return factor/2 + 1
	default:
		return factor
	}
}

func (it *policy) Decide(question witan.Question) (witan.Answer, error) {
	factor := question.ReplicationFactor
	answers := max(required(question.Level, factor), required(question.Minimum, factor))
	if question.Operation == witan.OperationRead {
		answers = min(it.reads, factor)
	}
	return witan.Answer{Required: answers, DeadlineMs: question.DeadlineMs, Shortfall: witan.ShortfallFail()}, nil
}

func init() {
	witan.Implement(&policy{reads: 1})
}

// A plugin has no beginning and no end of its own: it is called.
func main() {}
