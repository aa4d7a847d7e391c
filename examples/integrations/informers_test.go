package integrations_test

// This file tests informers of Kubernetes.

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/rest"

	"github.com/infuse-go/infuse"
)

// apiServer implements the parts of a Kubernetes API server that informers use.
type apiServer struct {
	watches atomic.Int64
	mu      sync.Mutex
	cut     chan struct{} // closed to cut the open watches
}

func (s *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	resource := r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
	if r.URL.Query().Get("watch") == "" {
		_, _ = fmt.Fprintf(w, `{"kind":"List","apiVersion":"v1","metadata":{"resourceVersion":"1"},"items":[]}`)
		return
	}
	if resource == "pods" { // only pods have events
		_, _ = io.WriteString(w, `{"type":"ADDED","object":{"kind":"Pod","apiVersion":"v1","metadata":{"name":"p","namespace":"n","resourceVersion":"2"}}}`+"\n")
	}
	_ = http.NewResponseController(w).Flush()
	s.mu.Lock()
	cut := s.cut
	s.mu.Unlock()
	s.watches.Add(1)
	select {
	case <-cut:
		panic(http.ErrAbortHandler)
	case <-r.Context().Done():
	}
}

func (s *apiServer) cutAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.cut)
	s.cut = make(chan struct{})
}

// A load balancer restarted, and cut six watches together. That opened the circuit of a
// healthy API server.
func TestKubernetesWatchesCutTogether(t *testing.T) {
	resources := []string{"pods", "services", "secrets", "nodes", "endpoints", "events"}
	for _, protocol := range []string{"HTTP/1.1", "HTTP/2.0"} {
		t.Run(protocol, func(t *testing.T) {
			api := &apiServer{cut: make(chan struct{})}
			server := httptest.NewUnstartedServer(api)
			server.EnableHTTP2 = protocol == "HTTP/2.0"
			server.StartTLS()
			defer server.Close()
			rejected := infuse.Listener{Rejected: func(_ context.Context, _ *infuse.Breaker, err *infuse.OpenError) { t.Error(err) }}
			group, err := infuse.NewGroup(infuse.Config{ResetTimeout: time.Hour, Listeners: []*infuse.Listener{&rejected}})
			require.NoError(t, err)
			defer group.Stop()
			client, err := dynamic.NewForConfig(&rest.Config{
				Host: server.URL, Transport: &infuse.Transport{Base: server.Client().Transport, Breakers: group}, QPS: -1,
			})
			require.NoError(t, err)

			stop := make(chan struct{})
			factory := dynamicinformer.NewDynamicSharedInformerFactory(client, 0)
			for _, resource := range resources {
				factory.ForResource(schema.GroupVersionResource{Version: "v1", Resource: resource}).Informer()
			}
			factory.Start(stop)
			defer factory.Shutdown()
			defer close(stop)
			running := func(n int) {
				t.Helper()
				require.Eventually(t, func() bool { return api.watches.Load() >= int64(n) }, time.Minute, 5*time.Millisecond)
			}
			for rounds := 1; rounds <= 2; rounds++ {
				running(rounds * len(resources))
				api.cutAll()
			}
			running(3 * len(resources))
			breaker, err := group.Breaker(server.Listener.Addr().String())
			require.NoError(t, err)
			assert.Equal(t, infuse.StateClosed, breaker.State())
		})
	}
}
