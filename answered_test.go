package infuse_test

import (
	"context"
	"crypto/tls"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

func TestAnsweredIsNeitherAConnectionErrorNorATimeout(t *testing.T) {
	_, refused := net.Dial("tcp", "127.0.0.1:1")
	_, unknown := (&net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) { return nil, errIll }}).LookupHost(t.Context(), "db.invalid")
	for _, err := range []error{
		refused, unknown, driver.ErrBadConn, io.EOF, io.ErrUnexpectedEOF, net.ErrClosed, context.DeadlineExceeded, os.ErrDeadlineExceeded, syscall.ETIMEDOUT,
		&net.OpError{Op: "read", Err: syscall.ECONNRESET}, &tls.CertificateVerificationError{Err: errIll}, &infuse.OpenError{Circuit: "another"},
	} {
		require.Error(t, err)
		require.False(t, infuse.Answered(err), "%v", err)
		require.False(t, infuse.Answered(fmt.Errorf("orders: %w", err)), "%v", err)
		require.False(t, infuse.Answered(errors.Join(errIll, err)), "%v", err)
	}
	for _, err := range []error{
		sql.ErrNoRows, sql.ErrTxDone, errors.New("duplicate key value violates unique constraint"), context.Canceled,
		&fs.PathError{Op: "open", Path: "x", Err: syscall.ENOENT},
	} {
		require.True(t, infuse.Answered(err), "%v", err)
	}
}
