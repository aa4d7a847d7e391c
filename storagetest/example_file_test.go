//go:build unix && !solaris && !aix

package storagetest_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/storagetest"
)

// fileStorage shows how to write a storage. It keeps each circuit in a file, in a
// directory that the processes of one host share.
//
// A storage needs a way to keep bytes, to lock them while they change, and to notify of
// changes. Record.Apply computes the changes.
type fileStorage struct{ dir string }

// entry is a record with the time of its write. A storage must keep that time, because
// the bytes of a record contain only relative times.
type entry struct {
	Written time.Time
	Record  json.RawMessage
}

// Load needs no lock, because save replaces files atomically.
func (s fileStorage) Load(_ context.Context, circuit string) (infuse.Record, error) {
	record, err := s.read(circuit)
	return record.At(time.Now()), err
}

// read returns the record as it was saved, for Record.Apply.
func (s fileStorage) read(circuit string) (infuse.Record, error) {
	if err := infuse.CheckName(circuit); err != nil {
		return infuse.Record{}, err
	}
	data, err := os.ReadFile(s.file(circuit))
	if errors.Is(err, fs.ErrNotExist) {
		return infuse.Record{}, nil // a circuit without a record is healthy
	}
	var e entry
	if err == nil {
		err = json.Unmarshal(data, &e)
	}
	if err != nil {
		return infuse.Record{}, err
	}
	return infuse.ParseRecord(e.Record, e.Written)
}

// Apply locks, reads, calls Record.Apply, saves and unlocks. It reads the time under the
// lock, so that it does not decrease between two changes. It uses the wall clock, the only
// clock that processes share.
func (s fileStorage) Apply(_ context.Context, circuit string, c infuse.Change) (infuse.Record, infuse.Verdict, error) {
	if err := check(c); err != nil {
		return infuse.Record{}, infuse.VerdictRefused, err
	}
	unlock, err := s.lock()
	if err != nil {
		return infuse.Record{}, infuse.VerdictRefused, err
	}
	defer unlock()
	record, err := s.read(circuit)
	if err != nil {
		return infuse.Record{}, infuse.VerdictRefused, err
	}
	now := time.Now()
	record, verdict := record.Apply(c, now)
	if verdict != infuse.VerdictRefused {
		err = s.save(circuit, entry{now, infuse.AppendRecord(nil, record, now)})
	}
	return record, verdict, err
}

func check(c infuse.Change) (err error) {
	if c.Number > 0 {
		err = infuse.CheckSource(c.Source)
	}
	if c.RequestTrial != "" {
		err = errors.Join(err, infuse.CheckSource(c.RequestTrial))
	}
	return err
}

// Watch polls. A database with notifications would send one after each VerdictChanged, and
// read the record whenever a notification may have been lost. Superfluous calls of fn are
// harmless.
func (s fileStorage) Watch(circuit string, fn func(infuse.Record)) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		for ctx.Err() == nil {
			if record, err := s.Load(ctx, circuit); err == nil && ctx.Err() == nil {
				fn(record)
			}
			select {
			case <-ctx.Done():
			case <-time.After(10 * time.Millisecond):
			}
		}
	}()
	return cancel
}

// file returns the path of the circuit's file. Names may contain characters that paths
// may not.
func (s fileStorage) file(circuit string) string {
	return filepath.Join(s.dir, fmt.Sprintf("%x.json", sha256.Sum256([]byte(circuit))))
}

func (s fileStorage) save(circuit string, e entry) error {
	data, err := json.Marshal(e)
	if err != nil {
		return err
	}
	unfinished := filepath.Join(s.dir, "unfinished") // only one at a time, under the lock
	if err := os.WriteFile(unfinished, data, 0o600); err != nil {
		return err
	}
	return os.Rename(unfinished, s.file(circuit))
}

// lock locks the directory for all processes. The operating system releases the lock of a
// process that ends.
func (s fileStorage) lock() (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(s.dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() { _ = f.Close() }, nil
}

func TestFile(t *testing.T) {
	t.Parallel()
	storagetest.Run(t, func(t *testing.T) infuse.Storage { return fileStorage{t.TempDir()} })
}
