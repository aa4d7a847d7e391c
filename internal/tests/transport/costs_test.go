package transport_test

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

// reusable is a Base that allocates nothing: one response, whose body is there
// again for each request.
type reusable struct {
	response http.Response
	body     io.ReadCloser
}

func (b *reusable) RoundTrip(*http.Request) (*http.Response, error) {
	b.response.Body = b.body
	return &b.response, nil
}

// endless is a body with nothing in it, which can be read again and again.
type endless struct{}

func (endless) Read([]byte) (int, error) { return 0, io.EOF }

func (endless) Close() error { return nil }

// endlessText writes itself as a string, as a strings.Reader does.
type endlessText struct{ endless }

func (endlessText) WriteTo(w io.Writer) (int64, error) {
	n, err := io.WriteString(w, "text")
	return int64(n), err
}

// cheapRequests are the requests whose cost is promised.
func cheapRequests(tb testing.TB) []cheapRequest {
	transport := func(status int, body io.ReadCloser) *infuse.Transport {
		return &infuse.Transport{
			Base:     &reusable{response: http.Response{StatusCode: status}, body: body},
			Breakers: groupOf(tb, infuse.Config{}),
		}
	}
	rejecting := transport(http.StatusOK, http.NoBody)
	b := breakerOf(tb, rejecting.Breakers, "inventory.test")
	require.NoError(tb, b.SetState(tb.Context(), infuse.StateOpen))
	return []cheapRequest{
		{"success without body", 0, transport(http.StatusOK, http.NoBody)},
		{"success with body", 1, transport(http.StatusOK, endless{})},
		{"success with a body that has WriteTo", 1, transport(http.StatusOK, endlessText{})},
		{"rejection", 0, rejecting},
	}
}

type cheapRequest struct {
	name        string
	allocations float64
	transport   *infuse.Transport
}

// cheapBody is a request whose body can be sent twice: it goes through untouched.
func cheapBody(tb testing.TB) *http.Request {
	r := newRequest(tb, http.MethodPost, "https://inventory.test/items", endless{})
	r.GetBody = func() (io.ReadCloser, error) { return endless{}, nil }
	return r
}

func (c *cheapRequest) send(r *http.Request, buffer []byte) {
	response, err := c.transport.RoundTrip(r)
	if err == nil {
		if to, ok := response.Body.(io.WriterTo); ok {
			_, _ = to.WriteTo(io.Discard)
		} else {
			_, _ = response.Body.Read(buffer)
		}
		_ = response.Body.Close()
	}
}

// R44.
func TestWhatTheTransportAllocates(t *testing.T) {
	buffer := make([]byte, 64)
	for _, c := range cheapRequests(t) {
		r := cheapBody(t)
		require.Equal(t, c.allocations, allocations(func() { c.send(r, buffer) }), c.name)
		r = newRequest(t, http.MethodGet, "https://inventory.test/items", nil)
		require.Equal(t, c.allocations, allocations(func() { c.send(r, buffer) }), c.name+", without a body")
		if c.name != "rejection" {
			r = newRequest(t, http.MethodPost, "https://inventory.test/items", endless{})
			require.Equal(t, c.allocations+1, allocations(func() { c.send(r, buffer) }), c.name+", with a copy for a body that cannot be sent twice")
		}
	}
}

// BenchmarkTransport is what the Transport adds: its Base costs nothing.
func BenchmarkTransport(b *testing.B) {
	for _, c := range cheapRequests(b) {
		r := cheapBody(b)
		b.Run(c.name, func(b *testing.B) {
			buffer := make([]byte, 64)
			b.ReportAllocs()
			for b.Loop() {
				c.send(r, buffer)
			}
		})
		b.Run(c.name+" in parallel", func(b *testing.B) {
			own := c.transport
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				buffer := make([]byte, 64)
				mine := cheapRequest{transport: &infuse.Transport{Base: newReusable(own), Breakers: own.Breakers}}
				for pb.Next() {
					mine.send(r, buffer)
				}
			})
		})
	}
}

// newReusable is a copy of the Transport's Base for another goroutine.
func newReusable(t *infuse.Transport) *reusable {
	base := t.Base.(*reusable)
	return &reusable{response: http.Response{StatusCode: base.response.StatusCode}, body: base.body}
}

// readerOnly hides what else a body can do.
type readerOnly struct{ io.Reader }

func (readerOnly) Close() error { return nil }

// BenchmarkTransportAdds is a successful request with a body over a Base that
// answers from memory, without the Transport and with it: the difference is what
// the Transport adds.
func BenchmarkTransportAdds(b *testing.B) {
	const text = "a body of some length, as of an answer in JSON"
	header := http.Header{"Content-Type": {"application/json"}, "Date": {"now"}, "Server": {"some"}, "Vary": {"Origin"}}
	for _, kind := range []struct {
		name   string
		length int64
		body   func() io.ReadCloser
	}{
		{"with a length", int64(len(text)), func() io.ReadCloser { return readerOnly{strings.NewReader(text)} }},
		{"chunked", -1, func() io.ReadCloser { return readerOnly{strings.NewReader(text)} }},
		{"with WriteTo", int64(len(text)), func() io.ReadCloser { return io.NopCloser(strings.NewReader(text)) }},
	} {
		base := baseFunc(func(r *http.Request) (*http.Response, error) {
			return &http.Response{
				Status: "200 OK", StatusCode: http.StatusOK, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
				Header: header, Body: kind.body(), ContentLength: kind.length, Request: r,
			}, nil
		})
		send := func(name string, transport http.RoundTripper, body io.Reader) {
			b.Run(kind.name+"/"+name, func(b *testing.B) {
				r := newRequest(b, http.MethodPost, "https://inventory.test/items", body) // with GetBody, if there is a body
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
		transport := &infuse.Transport{Base: base, Breakers: groupOf(b, infuse.Config{})}
		send("bare", base, nil)
		send("a Transport", transport, nil)
		send("a Transport, GetBody", transport, strings.NewReader("a body"))
	}
}
