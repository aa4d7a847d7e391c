package infuse_test

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

// plain hides what else a body can do.
type plain struct{ io.Reader }

func (plain) Close() error { return nil }

// BenchmarkTransportAdds is a successful request with a body over a Base that
// answers from memory, without the Transport and with it: the difference is
// what the Transport adds.
func BenchmarkTransportAdds(b *testing.B) {
	const text = "a body of some length, as of an answer in JSON"
	header := http.Header{"Content-Type": {"application/json"}, "Date": {"now"}, "Server": {"some"}, "Vary": {"Origin"}}
	for _, kind := range []struct {
		name   string
		length int64
		body   func() io.ReadCloser
	}{
		{"with a length", int64(len(text)), func() io.ReadCloser { return plain{strings.NewReader(text)} }},
		{"chunked", -1, func() io.ReadCloser { return plain{strings.NewReader(text)} }},
		{"WriteTo", int64(len(text)), func() io.ReadCloser { return io.NopCloser(strings.NewReader(text)) }},
	} {
		base := baseFunc(func(r *http.Request) (*http.Response, error) {
			return &http.Response{
				Status: "200 OK", StatusCode: http.StatusOK, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
				Header: header, Body: kind.body(), ContentLength: kind.length, Request: r,
			}, nil
		})
		for name, transport := range map[string]http.RoundTripper{
			"bare":        base,
			"a Transport": &infuse.Transport{Base: base, Breakers: groupOf(b, infuse.Config{})},
		} {
			b.Run(kind.name+"/"+name, func(b *testing.B) {
				r := newRequest(b, http.MethodGet, "https://inventory.test/items", nil)
				b.ReportAllocs()
				for b.Loop() {
					response, err := transport.RoundTrip(r)
					if err != nil {
						b.Fatal(err)
					}
					_, _ = io.Copy(io.Discard, response.Body)
					_ = response.Body.Close()
				}
			})
		}
	}
	require.NoError(b, nil)
}
