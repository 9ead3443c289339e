// A conflict resolver: a value is a set of lines, and siblings are merged to the union of their lines.
//
// Verdicts must not depend on the order of the siblings, and merging a verdict again must change nothing. So the lines are sorted, and each
// is there once.
package main

import (
	"bytes"
	"slices"

	"example.com/@NAME@/witan"
)

// What the plugin calls itself. A binding by name refers to it by this name.
const (
	name    = "@NAME@"
	version = "0.1.0"
)

// resolver takes no configuration.
type resolver struct{}

func (resolver) Describe() witan.Manifest {
	return witan.Manifest{Name: name, Version: version, Hook: "conflict-resolver", Deterministic: true}
}

// Configure is called once on every new instance.
func (resolver) Configure(configuration []byte) []witan.ConfigIssue {
	if len(configuration) > 0 {
		return []witan.ConfigIssue{{Problem: "this plugin takes no configuration; bind it without one"}}
	}
	return nil
}

func (resolver) Resolve(question witan.Question) (witan.Verdict, error) {
	var lines [][]byte
	for _, sibling := range question.Siblings {
		// A value with a zero byte is no text. Nothing of it may be lost, so its readers get all siblings.
		if bytes.IndexByte(sibling.Value, 0) >= 0 {
			return witan.VerdictKeepAll(), nil
		}
		for line := range bytes.SplitSeq(sibling.Value, []byte{'\n'}) {
			if len(line) > 0 {
				lines = append(lines, line)
			}
		}
	}
	// Lines are sorted by their bytes, so that every coordinator sorts them alike.
	slices.SortFunc(lines, bytes.Compare)
	var merged []byte
	for _, line := range slices.CompactFunc(lines, bytes.Equal) {
		merged = append(append(merged, line...), '\n')
	}
	return witan.VerdictMerged(merged), nil
}

// Samples are what the coordinator tries the laws on before it binds the plugin.
func (resolver) Samples() [][]byte {
	return [][]byte{[]byte("a\nb\n"), []byte("b\nc"), []byte("\n\n"), nil, []byte("no text\x00")}
}

func init() {
	witan.Implement(resolver{})
}

// A plugin has no beginning and no end of its own: it is called.
func main() {}
