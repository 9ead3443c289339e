package witan

// Pair is two values; of attributes, a name and a value.
type Pair[A, B any] struct {
	First  A
	Second B
}
