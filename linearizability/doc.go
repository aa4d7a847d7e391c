// Package linearizability checks that a storage changes each circuit atomically.
// Several clients call Storage.Apply and Storage.Load of one circuit
// concurrently. Their results must be those that Record.Apply returns for the
// same changes in some order, one after the other. MemoryStorage and
// RedisStorage are checked. RedisStorage may count failures and evaluate the record in two
// steps if the count reaches the threshold: the model allows that.
//
// The package is its own module, so that only its tests depend on the checker.
package linearizability
