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
	"reflect"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/storagetest"
)

// fileStorage shows how to write a storage: circuits in a directory that the
// processes of one host share, a file of JSON for each.
//
// All that a storage has to bring is a way to keep a record, a way to lock it
// while it is changed, and a way to hear of changes. What a change does is
// Record.Apply's business.
type fileStorage struct{ dir string }

// Load needs no lock, because save replaces a file as a whole.
func (s fileStorage) Load(_ context.Context, circuit string) (record infuse.Record, err error) {
	if err := infuse.CheckName(circuit); err != nil {
		return record, err
	}
	data, err := os.ReadFile(s.file(circuit))
	if errors.Is(err, fs.ErrNotExist) {
		return infuse.Record{}, nil // a circuit without a record is healthy
	}
	if err != nil {
		return record, err
	}
	return record, json.Unmarshal(data, &record)
}

// Apply is begin, load, Record.Apply, save, commit. The present time is read
// after the lock was got, so that it never goes back between two changes; it is
// the wall clock's, because a host's processes have no other in common.
func (s fileStorage) Apply(ctx context.Context, circuit string, c infuse.Change) (infuse.Record, infuse.Verdict, error) {
	unlock, err := s.lock()
	if err != nil {
		return infuse.Record{}, infuse.VerdictRefused, err
	}
	defer unlock()
	record, err := s.Load(ctx, circuit)
	if err != nil {
		return infuse.Record{}, infuse.VerdictRefused, err
	}
	record, verdict := record.Apply(c, time.Now())
	if verdict != infuse.VerdictRefused {
		err = s.save(circuit, record)
	}
	return record, verdict, err
}

// Watch polls. A database that can notify would rather do that where the
// verdict is VerdictMoved; and read the record anew whenever a notification
// may have been lost.
func (s fileStorage) Watch(circuit string, fn func(infuse.Record)) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		var last infuse.Record
		for ctx.Err() == nil {
			record, err := s.Load(ctx, circuit)
			if err == nil && !reflect.DeepEqual(record, last) { // more than need be, which does no harm
				last = record
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

func (s fileStorage) save(circuit string, record infuse.Record) error {
	data, err := json.Marshal(record)
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
	storagetest.Run(t, func(t *testing.T) infuse.Storage { return fileStorage{t.TempDir()} })
}

// Two instances stand for two processes: nothing but the directory joins them.
func TestFilesAreSharedByTheirDirectory(t *testing.T) {
	one, other := fileStorage{t.TempDir()}, fileStorage{}
	other.dir = one.dir
	cfg := infuse.Config{FailMax: 400, StorageTimeout: time.Minute}
	var breakers []*infuse.Breaker
	for _, s := range []infuse.Storage{one, other} {
		cfg.Storage = s
		b, err := infuse.New("service", cfg)
		require.NoError(t, err)
		defer b.Stop()
		breakers = append(breakers, b)
	}
	failed := errors.New("failed")
	var running sync.WaitGroup
	for _, b := range breakers {
		running.Go(func() {
			for range 200 {
				assert.ErrorIs(t, b.Call(context.Background(), func(context.Context) error { return failed }), failed)
			}
		})
	}
	running.Wait()
	for _, b := range breakers {
		require.Eventually(t, func() bool { return b.State() == infuse.StateOpen }, 30*time.Second, 5*time.Millisecond)
	}
}
