package transport_test

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
)

// answersInTrailer says how it went in a trailer, behind a message.
func answersInTrailer(status int, announced bool) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/grpc")
		name := "Grpc-Status"
		if announced {
			w.Header().Set("Trailer", name)
		} else {
			name = http.TrailerPrefix + name
		}
		_, _ = io.WriteString(w, "a message")
		_ = http.NewResponseController(w).Flush()
		w.Header().Set(name, fmt.Sprint(status))
	}
}

// answersInFrames says how it went in the last frame.
func answersInFrames(media, encoding string, frames ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", media)
		if encoding != "" {
			w.Header().Set("Grpc-Encoding", encoding)
			w.Header().Set("Connect-Content-Encoding", encoding)
		}
		for _, f := range frames {
			_, _ = io.WriteString(w, f)
			_ = http.NewResponseController(w).Flush()
		}
	}
}

func frame(flags byte, text string) string {
	head := binary.BigEndian.AppendUint32([]byte{flags}, uint32(len(text)))
	return string(head) + text
}

func zipped(text string) string {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, _ = io.WriteString(z, text)
	_ = z.Close()
	return b.String()
}

// A gRPC or Connect service was down, said so behind a 200, and its circuit
// never opened.
func TestAStatusBehindThe200Counts(t *testing.T) {
	const web, connect = "application/grpc-web+proto", "application/connect+json"
	unavailable := `{"error":{"code":"unavailable","message":"down for now"}}`
	for name, test := range map[string]struct {
		h     http.HandlerFunc
		want  int // failures on record; one was there before
		cause string
	}{
		"trailer: ok":                   {answersInTrailer(0, true), 0, ""},
		"trailer: unavailable":          {answersInTrailer(14, true), 2, "grpc-status 14 (unavailable)"},
		"trailer: internal":             {answersInTrailer(13, true), 2, "grpc-status 13 (internal)"},
		"trailer: canceled":             {answersInTrailer(1, true), 1, ""},
		"trailer: not found":            {answersInTrailer(5, true), 0, ""},
		"trailer: unknown":              {answersInTrailer(2, true), 0, ""},
		"trailer: unimplemented":        {answersInTrailer(12, true), 0, ""},
		"trailer, not announced":        {answersInTrailer(14, false), 2, "grpc-status 14 (unavailable)"},
		"no body, status in the header": {func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Grpc-Status", "14") }, 2, "grpc-status 14 (unavailable)"},
		"HTTP speaks for itself":        {answers(http.StatusBadGateway, "failed"), 2, "502 Bad Gateway"},
		"gRPC-Web: ok":                  {answersInFrames(web, "", frame(0, "message"), frame(0x80, "grpc-status: 0\r\n")), 0, ""},
		"gRPC-Web: unavailable":         {answersInFrames(web, "", frame(0, "message"), frame(0x80, "grpc-message:down\r\nGrpc-Status:14\r\n")), 2, "grpc-status 14 (unavailable)"},
		"gRPC-Web, nothing else":        {answersInFrames(web, "", frame(0x80, "grpc-status: 14")), 2, "grpc-status 14 (unavailable)"},
		"gRPC-Web, compressed":          {answersInFrames(web, "gzip", frame(0x81, zipped("grpc-status: 14\r\n"))), 2, "grpc-status 14 (unavailable)"},
		"gRPC-Web, no status":           {answersInFrames(web, "", frame(0x80, "x: y\r\n")), 0, ""},
		"Connect: ok":                   {answersInFrames(connect, "", frame(0, "{}"), frame(2, `{}`)), 0, ""},
		"Connect: unavailable":          {answersInFrames(connect, "", frame(0, "{}"), frame(0, ""), frame(2, unavailable)), 2, "grpc-status 14 (unavailable)"},
		"Connect, compressed":           {answersInFrames(connect, "gzip", frame(1, zipped("{}")), frame(3, zipped(unavailable))), 2, "grpc-status 14 (unavailable)"},
		"Connect: no such code":         {answersInFrames(connect, "", frame(2, `{"error":{"code":"ok"}}`)), 0, ""},
		"Connect, garbage":              {answersInFrames(connect, "", frame(2, `{`)), 0, ""},
		"Connect, another compression":  {answersInFrames(connect, "br", frame(3, "?")), 0, ""},
		"a last frame that is too long": {answersInFrames(connect, "", frame(2, strings.Repeat(" ", 1<<20)+unavailable)), 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			overBoth(t, func(t *testing.T, s *webServer) {
				if s.EnableHTTP2 == false && name == "trailer, not announced" {
					t.Skip("HTTP/1.1 has none of these")
				}
				s.does(test.h)
				c := startFailedClient(t, s)
				c.transport.Classify = infuse.GRPCStatus
				_, err := c.get()
				require.NoError(t, err)
				require.Equal(t, test.want, failuresOf(c.breaker))
				if test.cause == "" {
					return
				}
				require.NoError(t, c.breaker.Configure(infuse.Config{FailMax: 1}))
				_, err = c.get()
				require.NoError(t, err)
				_, err = c.get()
				var rejection *infuse.OpenError
				require.ErrorAs(t, err, &rejection)
				require.EqualError(t, rejection.Cause, test.cause)
			})
		})
	}
}

// Classify is asked again at the end of a body where there is a trailer, and
// the caller sees the response that it would have seen without.
func TestClassifyIsAskedAboutTheTrailer(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		var seen []string
		c := startWebClient(t, s, infuse.Config{FailMax: 100})
		c.transport.Classify = func(_ *http.Request, response *http.Response, err error) infuse.Outcome {
			require.NoError(t, err)
			seen = append(seen, response.Trailer.Get("Grpc-Status"))
			if response.Trailer.Get("Grpc-Status") == "5" {
				return infuse.OutcomeFailure
			}
			return infuse.OutcomeSuccess
		}
		s.does(answersInTrailer(5, true))
		_, err := c.get()
		require.NoError(t, err)
		require.Equal(t, []string{"", "5"}, seen)
		require.Equal(t, 1, failuresOf(c.breaker))

		seen = nil
		s.does(answersInFrames("application/grpc-web", "", frame(0x80, "grpc-status: 5")))
		response, err := c.Get(s.URL)
		require.NoError(t, err)
		_, err = readAll(response)
		require.NoError(t, err)
		require.Empty(t, response.Trailer, "the caller's response is as it came")
		require.Equal(t, []string{"", "5"}, seen)
		require.Equal(t, 2, failuresOf(c.breaker))

		seen = nil
		s.does(answers(http.StatusOK, "well"))
		_, err = c.get()
		require.NoError(t, err)
		require.Equal(t, []string{""}, seen, "without a trailer it is asked once")
	})
}

// A client that has its last frame does not read on. Nor need it.
func TestTheLastFrameEndsTheExchange(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		last := frame(2, `{"error":{"code":"unavailable"}}`)
		s.does(func(w http.ResponseWriter, r *http.Request) {
			answersInFrames("application/connect+proto", "", last)(w, r)
			s.stall(r)
		})
		c := startFailedClient(t, s)
		c.transport.Classify = infuse.GRPCStatus
		response, err := c.Get(s.URL)
		require.NoError(t, err)
		_, err = io.ReadFull(response.Body, make([]byte, len(last)))
		require.NoError(t, err)
		require.Equal(t, 2, failuresOf(c.breaker))
		require.NoError(t, response.Body.Close())
		require.Equal(t, 2, failuresOf(c.breaker))
	})
}

// A trial ends at its headers. What the trailer says counts in the circuit that
// it has closed.
func TestATrailerAfterTheTrial(t *testing.T) {
	overBoth(t, func(t *testing.T, s *webServer) {
		s.does(answersInTrailer(14, true))
		c := startWebClient(t, s, infuse.Config{})
		c.transport.Classify = infuse.GRPCStatus
		require.NoError(t, c.breaker.SetState(t.Context(), infuse.StateHalfOpen))
		_, err := c.get()
		require.NoError(t, err)
		requireState(t, infuse.StateClosed, c.breaker)
		require.Equal(t, 1, failuresOf(c.breaker))
	})
}

// However a body comes in, and whatever is in it: its last frame is the same.
func FuzzFrames(f *testing.F) {
	f.Add([]byte(frame(0, "message")+frame(0x80, "grpc-status: 14\r\n")), true)
	f.Add([]byte(frame(0, "")+frame(2, `{"error":{"code":"unavailable"}}`)), false)
	f.Add([]byte("\x02\xff\xff\xff\xff"), false)
	f.Fuzz(func(t *testing.T, text []byte, web bool) {
		media := "application/connect+json"
		if web {
			media = "application/grpc-web"
		}
		outcomes := func(r io.Reader) (n int) {
			transport := &infuse.Transport{
				Classify: infuse.GRPCStatus, Breakers: groupOf(t, infuse.Config{FailMax: 100}),
				Base: baseFunc(func(*http.Request) (*http.Response, error) {
					return &http.Response{
						StatusCode: http.StatusOK, Body: io.NopCloser(r), ContentLength: -1,
						Header: http.Header{"Content-Type": {media}},
					}, nil
				}),
			}
			response, err := transport.RoundTrip(newRequest(t, http.MethodGet, "http://inventory.test", nil))
			require.NoError(t, err)
			got, err := readAll(response)
			require.NoError(t, err)
			require.Equal(t, string(text), got)
			return failuresOf(breakerOf(t, transport.Breakers, "inventory.test"))
		}
		require.Equal(t, outcomes(bytes.NewReader(text)), outcomes(iotest.OneByteReader(bytes.NewReader(text))))
	})
}
