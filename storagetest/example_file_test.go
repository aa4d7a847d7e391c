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

// fileStorage shows how to write a storage: circuits in a directory that the
// processes of one host share, a file for each.
//
// All that a storage has to bring is a way to keep some bytes, a way to lock
// them while they are changed, and a way to hear of changes. What a change does
// is Record.Apply's business.
type fileStorage struct{ dir string }

// entry is a record and when it was written. The bytes have no clock: so a
// storage keeps the time beside them, on its own.
type entry struct {
	Written time.Time
	Record  json.RawMessage
}

// Load needs no lock, because save replaces a file as a whole.
func (s fileStorage) Load(_ context.Context, circuit string) (infuse.Record, error) {
	record, err := s.read(circuit)
	return record.At(time.Now()), err
}

// read returns the record as it was saved: what Record.Apply is called on.
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

// Apply is begin, read, Record.Apply, save, commit. The present time is read
// after the lock was got, so that it never goes back between two changes; it is
// the wall clock's, because a host's processes have no other in common.
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
	if c.Ask != "" {
		err = errors.Join(err, infuse.CheckSource(c.Ask))
	}
	return err
}

// Watch polls. A database that can notify would rather do that where the
// verdict is VerdictMoved; and read the record anew whenever a notification
// may have been lost. Some of what it tells is no news, which does no harm.
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

// file is where the circuit's record is. Any text may be a circuit's name, a
// file's name is not any text.
func (s fileStorage) file(circuit string) string {
	return filepath.Join(s.dir, fmt.Sprintf("%x.json", sha256.Sum256([]byte(circuit))))
}

func (s fileStorage) save(circuit string, e entry) error {
	data, err := json.Marshal(e)
	if err != nil {
		return err
	}
	unfinished := filepath.Join(s.dir, "unfinished") // one at a time, under the lock
	if err := os.WriteFile(unfinished, data, 0o600); err != nil {
		return err
	}
	return os.Rename(unfinished, s.file(circuit))
}

// lock locks the directory's circuits against all other storages on it. The
// lock of a process that dies is let go by the system.
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
