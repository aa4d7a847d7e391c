package infuse

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// This file reads how a call has gone where its headers do not say it: in a
// trailer, as gRPC has it, or in the last frame of the body, as gRPC-Web and
// Connect's streams have it.

// GRPCStatus is a Transport's Classify for gRPC, gRPC-Web and Connect, whose
// failures may come as a 200. These codes are failures: DeadlineExceeded,
// ResourceExhausted, Internal, Unavailable and DataLoss. Canceled is ignored. Any
// other code is a success: Unknown, because an application's own errors have that
// code, and Unimplemented, because one missing method is no reason to reject calls
// of the others. A response without a code, as that of a Connect unary call, and an
// error are classified as by DefaultClassify.
//
// For other lists of codes, a Classify of your own finds the code in the Trailer
// or the Header of the response, as Grpc-Status, in all three protocols.
func GRPCStatus(r *http.Request, response *http.Response, err error) Outcome {
	if err == nil {
		if code, ok := grpcCode(response); ok {
			return code.outcome()
		}
	}
	return DefaultClassify(r, response, err)
}

// grpcStatus is a code of gRPC other than 0.
type grpcStatus int

var grpcNames = []string{
	"ok", "canceled", "unknown", "invalid_argument", "deadline_exceeded", "not_found", "already_exists",
	"permission_denied", "resource_exhausted", "failed_precondition", "aborted", "out_of_range", "unimplemented",
	"internal", "unavailable", "data_loss", "unauthenticated",
}

func (s grpcStatus) Error() string {
	text := "grpc-status " + strconv.Itoa(int(s))
	if s >= 0 && int(s) < len(grpcNames) {
		text += " (" + grpcNames[s] + ")"
	}
	return text
}

func (s grpcStatus) outcome() Outcome {
	switch s {
	case 1:
		return OutcomeIgnored
	case 4, 8, 13, 14, 15:
		return OutcomeFailure
	}
	return OutcomeSuccess
}

const grpcStatusHeader = "Grpc-Status"

// grpcCode returns the code of a response: of its trailer or, where there is no
// body, of its headers.
func grpcCode(response *http.Response) (code grpcStatus, ok bool) {
	for _, h := range []http.Header{response.Trailer, response.Header} {
		if values := h[grpcStatusHeader]; len(values) > 0 {
			n, err := strconv.Atoi(values[0])
			return grpcStatus(n), err == nil
		}
	}
	return 0, false
}

var errTrailer = errors.New("infuse: a failure by the response's trailer")

// failureOf is how a response failed that is classified as a failure.
func failureOf(response *http.Response) error {
	code, ok := grpcCode(response)
	switch {
	case response.StatusCode != http.StatusOK:
		return statusError(response.StatusCode)
	case ok && code != 0:
		return code
	case len(response.Trailer) > 0:
		return errTrailer
	}
	return statusError(response.StatusCode)
}

// hasTrailer reports whether the end of the body says more than the headers, to
// somebody who wants to know.
func (b *body) hasTrailer() bool {
	return b.transport.Classify != nil && (len(b.response.Trailer) > 0 || b.hasLastFrame())
}

// hasLastFrame reports whether the last frame has come, and can be read.
func (b *body) hasLastFrame() bool {
	f, ok := b.from.(*frames)
	return ok && f.trailer != nil
}

// withTrailer returns the response for Classify. What the last frame said is in
// the trailer of a copy: the caller's response stays as it is.
func (b *body) withTrailer() *http.Response {
	f, ok := b.from.(*frames)
	if !ok || f.trailer == nil {
		return b.response
	}
	seen := *b.response
	seen.Trailer = f.trailer
	return &seen
}

// frames is a body that looks for its last frame as it is read. A frame is a
// byte of flags, four of length, and as many as that says.
type frames struct {
	io.ReadCloser
	lastFlag byte
	connect  bool // its last frame is JSON, and not header lines
	gzip     bool // a frame that says so is compressed

	head    [5]byte
	have    int    // bytes of head
	left    uint32 // of the frame
	last    []byte
	over    bool        // there is nothing more to look for
	trailer http.Header // what the last frame says; nil if it has not come, or cannot be read
}

// maxLastFrame bounds what is kept of a last frame. A longer one says nothing.
const maxLastFrame = 16 << 10

// framed returns the body of a response, as frames if its status is in it.
func framed(from io.ReadCloser, response *http.Response) io.ReadCloser {
	media := mediaType(response.Header.Get("Content-Type"))
	switch {
	case media == "application/grpc-web" || strings.HasPrefix(media, "application/grpc-web+"):
		return &frames{ReadCloser: from, lastFlag: 0x80, gzip: response.Header.Get("Grpc-Encoding") == "gzip"}
	case strings.HasPrefix(media, "application/connect+"):
		return &frames{ReadCloser: from, lastFlag: 0x02, connect: true, gzip: response.Header.Get("Connect-Content-Encoding") == "gzip"}
	}
	return from
}

func (f *frames) Read(p []byte) (int, error) {
	n, err := f.ReadCloser.Read(p)
	f.see(p[:n])
	return n, err
}

// see takes the next bytes of the body.
func (f *frames) see(p []byte) {
	for len(p) > 0 && !f.over {
		if f.have < len(f.head) {
			n := copy(f.head[f.have:], p)
			f.have, p = f.have+n, p[n:]
			if f.have < len(f.head) {
				return
			}
			f.left = binary.BigEndian.Uint32(f.head[1:])
		}
		n := min(len(p), int(min(f.left, 1<<30)))
		if f.isLast() {
			if f.left > maxLastFrame {
				f.over = true
				return
			}
			f.last = append(f.last, p[:n]...)
		}
		f.left, p = f.left-uint32(n), p[n:]
		if f.left == 0 {
			f.have = 0
			if f.isLast() {
				f.over, f.trailer = true, f.read()
			}
		}
	}
}

func (f *frames) isLast() bool { return f.head[0]&f.lastFlag != 0 }

// read returns what the last frame says; nil if that cannot be read.
func (f *frames) read() http.Header {
	text := f.last
	if f.head[0]&1 != 0 {
		if !f.gzip {
			return nil
		}
		z, err := gzip.NewReader(bytes.NewReader(text))
		if err != nil {
			return nil
		}
		if text, err = io.ReadAll(io.LimitReader(z, maxLastFrame)); err != nil {
			return nil
		}
	}
	if f.connect {
		return connectTrailer(text)
	}
	return grpcWebTrailer(string(text))
}

func grpcWebTrailer(text string) http.Header {
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.EqualFold(strings.TrimSpace(name), grpcStatusHeader) {
			return http.Header{grpcStatusHeader: {strings.TrimSpace(value)}}
		}
	}
	return nil
}

func connectTrailer(text []byte) http.Header {
	var end struct {
		Error *struct {
			Code string `json:"code"`
		} `json:"error"`
	}
	if json.Unmarshal(text, &end) != nil {
		return nil
	}
	code := 0
	if end.Error != nil {
		if code = slices.Index(grpcNames, end.Error.Code); code < 1 {
			code = 2 // unknown
		}
	}
	return http.Header{grpcStatusHeader: {strconv.Itoa(code)}}
}
