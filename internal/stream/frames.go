package stream

// This file contains the bodies whose last frame has the status.

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// maxLastFrame is the number of bytes above which a last frame is not read.
const maxLastFrame = 16 << 10

const connectPrefix = "application/connect+"

// Body is the body of a response of gRPC-Web, or of a stream of Connect: its last
// frame has the status. A frame is a byte of flags, four bytes of length, and as many
// bytes as that.
type Body struct {
	io.ReadCloser
	lastFlag byte
	connect  bool // the last frame is JSON, not header lines
	gzip     bool // a frame with the flag of compression is compressed

	head    [5]byte
	have    int    // bytes of head
	left    uint32 // bytes of the frame
	last    []byte
	over    bool // the last frame was received, or is too long
	trailer http.Header
}

// BodyOf returns from, which is the body of the response: as a *Body if the status is
// in its last frame.
func BodyOf(from io.ReadCloser, response *http.Response) io.ReadCloser {
	media := mediaType(response.Header.Get("Content-Type"))
	switch {
	case media == "application/grpc-web" || strings.HasPrefix(media, "application/grpc-web+"):
		return &Body{ReadCloser: from, lastFlag: 0x80, gzip: response.Header.Get("Grpc-Encoding") == "gzip"}
	case strings.HasPrefix(media, connectPrefix):
		return &Body{ReadCloser: from, lastFlag: 0x02, connect: true, gzip: response.Header.Get("Connect-Content-Encoding") == "gzip"}
	}
	return from
}

// Trailer returns the status of the last frame as a trailer; nil if that frame was
// not received yet, or cannot be read.
func (b *Body) Trailer() http.Header { return b.trailer }

func (b *Body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.received(p[:n])
	return n, err
}

func (b *Body) received(p []byte) {
	for len(p) > 0 && !b.over {
		if b.have < len(b.head) {
			n := copy(b.head[b.have:], p)
			b.have, p = b.have+n, p[n:]
			if b.have < len(b.head) {
				return
			}
			b.left = binary.BigEndian.Uint32(b.head[1:])
		}
		n := min(len(p), int(min(b.left, 1<<30)))
		if b.isLast() {
			if b.left > maxLastFrame {
				b.over = true
				return
			}
			b.last = append(b.last, p[:n]...)
		}
		b.left, p = b.left-uint32(n), p[n:]
		if b.left == 0 {
			b.have = 0
			if b.isLast() {
				b.over, b.trailer = true, b.parse()
			}
		}
	}
}

func (b *Body) isLast() bool { return b.head[0]&b.lastFlag != 0 }

// parse returns the trailer of the last frame; nil if it cannot be read.
func (b *Body) parse() http.Header {
	text := b.last
	if b.head[0]&1 != 0 {
		if !b.gzip {
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
	if b.connect {
		return connectTrailer(text)
	}
	return grpcWebTrailer(string(text))
}

func grpcWebTrailer(text string) http.Header {
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.EqualFold(strings.TrimSpace(name), statusHeader) {
			return http.Header{statusHeader: {strings.TrimSpace(value)}}
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
	status := OK
	if end.Error != nil {
		if status = Status(slices.Index(names, end.Error.Code)); status < 1 {
			status = unknown
		}
	}
	return http.Header{statusHeader: {strconv.Itoa(int(status))}}
}
