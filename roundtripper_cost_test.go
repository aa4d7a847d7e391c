package infuse_test

import (
	"io"
	"net/http"
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
func (endless) Close() error             { return nil }

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
			Breakers: startGroup(tb, infuse.Config{}),
		}
	}
	rejecting := transport(http.StatusOK, http.NoBody)
	b, err := rejecting.Breakers.Breaker("inventory.test")
	require.NoError(tb, err)
	require.NoError(tb, b.Open(tb.Context()))
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

func TestWhatTheTransportAllocates(t *testing.T) {
	buffer := make([]byte, 64)
	for _, c := range cheapRequests(t) {
		r := newRequest(t, http.MethodPost, "https://inventory.test/items", endless{})
		require.Equal(t, c.allocations, testing.AllocsPerRun(1000, func() { c.send(r, buffer) }), c.name)
	}
}

// BenchmarkTransport is what the Transport adds: its Base costs nothing.
func BenchmarkTransport(b *testing.B) {
	for _, c := range cheapRequests(b) {
		r := newRequest(b, http.MethodPost, "https://inventory.test/items", endless{})
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
