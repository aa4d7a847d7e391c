package infuse

import (
	"crypto/tls"
	"database/sql/driver"
	"errors"
	"io"
	"net"
)

// Answered reports whether err is an answer of the service: neither a connection
// error nor a timeout. In Config.Exclude it makes failures of those two only. That
// fits databases: a syntax error or a violated constraint is no sign of an outage.
//
// Connection errors are those of package net, of TLS certificates, io.EOF,
// io.ErrUnexpectedEOF and driver.ErrBadConn of database/sql. A timeout is any error
// whose Timeout method returns true. A driver may have errors of its own for either:
// add them to a func of yours. A rejection by a circuit is no answer.
func Answered(err error) bool {
	var timeout interface{ Timeout() bool }
	var operation *net.OpError
	var name *net.DNSError
	var certificate *tls.CertificateVerificationError
	switch {
	case errors.As(err, &timeout) && timeout.Timeout(),
		errors.As(err, &operation), errors.As(err, &name), errors.As(err, &certificate),
		errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed), errors.Is(err, driver.ErrBadConn),
		errors.Is(err, ErrOpen):
		return false
	}
	return true
}
