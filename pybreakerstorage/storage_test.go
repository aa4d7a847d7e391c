package pybreakerstorage

// This file runs the tests of all storages.

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/redistest"
	"github.com/infuse-go/infuse/storagetest"
)

// Between Go processes, a Storage passes the tests of all storages.
func TestStorage(t *testing.T) {
	t.Parallel()
	for layout := range Infuse + 1 {
		t.Run(layout.String(), func(t *testing.T) {
			t.Parallel()
			server := redistest.Start(t)
			storagetest.Run(t, func(t *testing.T) infuse.Storage {
				client := server.Client()
				require.NoError(t, client.FlushDB(t.Context()).Err())
				s, err := New(client, Options{Layout: layout, PollInterval: 5 * time.Millisecond})
				require.NoError(t, err)
				return s
			})
		})
	}
}
