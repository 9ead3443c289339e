package witan

import "unsafe"

// The host writes a call's arguments into memory that it asks for here, and reads what the call returns before it calls again. Both are
// referred to until then, so that the garbage collector leaves them alone; it never moves anything.
var received, returned []unsafe.Pointer

//go:wasmexport cabi_realloc
func reallocate(old, oldBytes, align, bytes uint32) uint32 {
	at := allocate(uintptr(bytes))
	if old != 0 {
		copy(unsafe.Slice((*byte)(at), bytes), unsafe.Slice((*byte)(pointer(old)), oldBytes))
	}
	received = append(received, at)
	return uint32(uintptr(at))
}

// allocate returns memory that is aligned for everything.
func allocate(bytes uintptr) unsafe.Pointer {
	return unsafe.Pointer(unsafe.SliceData(make([]uint64, bytes/8+1)))
}

// begin is called when the arguments of a call are Go values, which refer to what of the memory they need.
func begin() {
	clear(received)
	clear(returned)
	received, returned = received[:0], returned[:0]
}

// returning returns memory for what a call returns.
func returning(bytes uintptr) unsafe.Pointer {
	at := allocate(bytes)
	returned = append(returned, at)
	return at
}

// reported logs why a call panics, before it ends this instance. The call counts as a fault.
func reported() {
	if cause := recover(); cause != nil {
		switch cause := cause.(type) {
		case error:
			Log(SeverityError, "panic: "+cause.Error())
		case string:
			Log(SeverityError, "panic: "+cause)
		default:
			Log(SeverityError, "panic")
		}
		panic(cause)
	}
}

func pointer(at uint32) unsafe.Pointer {
	return unsafe.Add(unsafe.Pointer(nil), at)
}

func load[T any](at unsafe.Pointer, offset uintptr) T {
	return *(*T)(unsafe.Add(at, offset))
}

func octets(at, count uint32) []byte {
	if count == 0 {
		return nil
	}
	return unsafe.Slice((*byte)(pointer(at)), count)
}

func text(at, count uint32) string {
	if count == 0 {
		return ""
	}
	return unsafe.String((*byte)(pointer(at)), count)
}

func list[T any](at, count, size uint32, load func(at unsafe.Pointer) T) []T {
	values := make([]T, count)
	for index := range values {
		values[index] = load(unsafe.Add(pointer(at), uintptr(index)*uintptr(size)))
	}
	return values
}

func store[T any](at unsafe.Pointer, offset uintptr, value T) {
	*(*T)(unsafe.Add(at, offset)) = value
}

func storeText(at unsafe.Pointer, offset uintptr, value string) {
	storePart(at, offset, unsafe.Pointer(unsafe.StringData(value)), len(value))
}

func storeOctets(at unsafe.Pointer, offset uintptr, value []byte) {
	storePart(at, offset, unsafe.Pointer(unsafe.SliceData(value)), len(value))
}

func storeList[T any](at unsafe.Pointer, offset uintptr, values []T, size uintptr, one func(at unsafe.Pointer, it T)) {
	items := allocate(size * uintptr(len(values)))
	for index, value := range values {
		one(unsafe.Add(items, size*uintptr(index)), value)
	}
	storePart(at, offset, items, len(values))
}

func storePart(at unsafe.Pointer, offset uintptr, part unsafe.Pointer, count int) {
	returned = append(returned, part)
	store(at, offset, uint32(uintptr(part)))
	store(at, offset+4, uint32(count))
}
