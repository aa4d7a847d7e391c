package ops_test

import (
	"bytes"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/ops"
)

// This file tests changes, and who may make them.

func newPost(t testing.TB, address, form string) *http.Request {
	t.Helper()
	request, err := http.NewRequest(http.MethodPost, address, strings.NewReader(form))
	require.NoError(t, err)
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return request
}

func send(t testing.TB, request *http.Request) *http.Response {
	t.Helper()
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	response, err := client.Do(request)
	require.NoError(t, err)
	t.Cleanup(func() { _ = response.Body.Close() })
	return response
}

func post(t testing.TB, address, form string) *http.Response {
	t.Helper()
	return send(t, newPost(t, address, form))
}

const forceOpen = "do=force-open&for=1+hour&reason=migration&confirm=yes"

func TestPageIsReadOnlyWithoutAuthorize(t *testing.T) {
	storage := infuse.NewMemoryStorage()
	nameless := func(*http.Request) (string, bool) { return "", true }
	stranger := func(*http.Request) (string, bool) { return "eve", false }
	for name, authorize := range map[string]func(*http.Request) (string, bool){"none": nil, "nameless": nameless, "stranger": stranger} {
		t.Run(name, func(t *testing.T) {
			address := serve(t, ops.Options{Storage: storage, Group: groupOn(t, storage), Authorize: authorize})
			require.NotContains(t, page(t, address+"?circuit=prices"), "<form method=\"post\"")
			require.Equal(t, http.StatusForbidden, post(t, address+"change?circuit=prices", forceOpen).StatusCode)
			r, err := storage.Load(t.Context(), "prices")
			require.NoError(t, err)
			require.Nil(t, r.Override)
		})
	}
}

func TestChangesAreAppliedAndRecorded(t *testing.T) {
	storage := infuse.NewMemoryStorage()
	local, remote := groupOn(t, storage), groupOn(t, storage)
	other := breaker(t, remote, "prices")
	for name, group := range map[string]*infuse.Group{"with the circuit": local, "without the circuit": groupOn(t, storage)} {
		t.Run(name, func(t *testing.T) {
			if group == local {
				breaker(t, group, "prices")
			}
			address := serve(t, ops.Options{Storage: storage, Group: group, Authorize: asAlice})
			text := page(t, address+"?circuit=prices")
			require.Contains(t, text, "signed in as <b><bdi>alice</bdi></b>")
			require.Contains(t, text, `action="change?circuit=prices"`)

			response := post(t, address+"change?circuit=prices", strings.TrimSuffix(forceOpen, "&confirm=yes"))
			body, err := io.ReadAll(response.Body)
			require.NoError(t, err)
			require.Contains(t, string(body), "Force open?")
			require.Contains(t, string(body), "1 hour</dd>")
			require.Nil(t, other.Stats().Override, "it was not confirmed")

			done := post(t, address+"change?circuit=prices", forceOpen)
			require.Equal(t, http.StatusSeeOther, done.StatusCode)
			require.Equal(t, "./?circuit=prices", done.Header.Get("Location"))
			o := other.Stats().Override
			require.NotNil(t, o)
			require.Equal(t, "alice", o.By)
			require.Equal(t, "migration", o.Reason)
			require.WithinDuration(t, time.Now().Add(time.Hour), o.Until, patience)
			require.Contains(t, page(t, address+"?circuit=prices"), "forced open by <bdi>alice</bdi>: <bdi>migration</bdi>")

			post(t, address+"change?circuit=prices", "do=remove&reason=over&confirm=yes")
			require.Nil(t, other.Stats().Override)
			require.Regexp(t, `<span class="step">override removed</span> by <bdi>alice: over</bdi></li>\n<li><time[^>]+>[^<]+</time> <span class="forced">forced open by <bdi>alice</bdi>: <bdi>migration</bdi>`, page(t, address+"?circuit=prices"))
			post(t, address+"change?circuit=prices", "do=set-open&reason=unhealthy&confirm=yes")
			require.Equal(t, infuse.StateOpen, other.State())
			r := reportAt(t, address+"circuits.json?circuit=prices").Circuits[0]
			require.Equal(t, "alice: unhealthy", r.Shared.By)
			require.Equal(t, "alice: unhealthy", r.History[0].By)
			post(t, address+"change?circuit=prices", "do=set-half-open&reason=try&confirm=yes")
			require.NoError(t, other.Call(t.Context(), succeeds))
			require.Equal(t, infuse.StateClosed, other.State())
		})
	}
}

func TestChangesAreLogged(t *testing.T) {
	var log bytes.Buffer
	h := ops.Handler(ops.Options{Storage: infuse.NewMemoryStorage(), Authorize: asAlice, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	w := httptest.NewRecorder()
	request := newPost(t, "http://localhost/infuse/change?circuit=prices", forceOpen)
	request.Header.Set("Accept", "application/json")
	h.ServeHTTP(w, request)
	require.Equal(t, http.StatusOK, w.Code)
	require.JSONEq(t, `{"circuit":"prices","done":"force-open","by":"alice"}`, w.Body.String())
	for _, want := range []string{"circuit=prices", "by=alice", "reason=migration", "change=force-open"} {
		require.Contains(t, log.String(), want)
	}
}

func TestChangesFromOtherOriginsAreRejected(t *testing.T) {
	storage := infuse.NewMemoryStorage()
	address := serve(t, ops.Options{Storage: storage, Authorize: asAlice})
	for header, value := range map[string]string{"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"} {
		request := newPost(t, address+"change?circuit=prices", forceOpen)
		request.Header.Set(header, value)
		require.Equal(t, http.StatusForbidden, send(t, request).StatusCode, header)
	}
	same := newPost(t, address+"change?circuit=prices", forceOpen)
	same.Header.Set("Sec-Fetch-Site", "same-origin")
	require.Equal(t, http.StatusSeeOther, send(t, same).StatusCode)

	response, _ := get(t, address+"change?circuit=prices&"+forceOpen)
	require.Equal(t, http.StatusMethodNotAllowed, response.StatusCode)
}

func TestInvalidChanges(t *testing.T) {
	address := serve(t, ops.Options{Storage: infuse.NewMemoryStorage(), Authorize: asAlice})
	for _, form := range []string{
		"", "do=explode&reason=x&confirm=yes", "do=force-open&reason=&confirm=yes", "do=force-open&reason=+%0A&confirm=yes", "do=force-open&for=forever&reason=x&confirm=yes",
		"do=force-open&confirm=yes&reason=" + strings.Repeat("x", 201), "do=force-open&confirm=yes&reason=" + strings.Repeat("x", 1<<20),
	} {
		require.Equal(t, http.StatusBadRequest, post(t, address+"change?circuit=prices", form).StatusCode, "%.60s", form)
	}
	require.Equal(t, http.StatusBadRequest, post(t, address+"change", forceOpen).StatusCode)
	text := newPost(t, address+"change?circuit=prices", forceOpen)
	text.Header.Set("Content-Type", "text/plain")
	require.Equal(t, http.StatusBadRequest, send(t, text).StatusCode)
}

func TestChangeThatStorageDoesNotConfirm(t *testing.T) {
	storage := newCounting()
	refuse := &refusing{counting: storage}
	address := serve(t, ops.Options{Storage: refuse, Authorize: asAlice})
	response := post(t, address+"change?circuit=prices", forceOpen)
	body, _ := io.ReadAll(response.Body)
	require.Equal(t, http.StatusServiceUnavailable, response.StatusCode)
	require.Contains(t, string(body), "Change not confirmed")
	require.Contains(t, string(body), "connection refused")
}
