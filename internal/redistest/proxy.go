package redistest

// This file contains Proxy, which simulates network faults.

import (
	"bytes"
	"context"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"
)

// A Proxy is between clients and a server, and simulates network faults. Its methods are
// safe for concurrent use.
type Proxy struct {
	target   string
	listener net.Listener
	ctx      context.Context // done once the proxy is closed
	stop     context.CancelFunc
	running  sync.WaitGroup

	mu      sync.Mutex // guards the fields below, and the state of the links
	links   map[*link]struct{}
	delay   time.Duration
	swallow bool
	drops   int
	loss    float64
}

// StartProxy starts a proxy on a loopback port that forwards all bytes to and from the
// target, a host:port. It is closed when the test ends.
func StartProxy(tb testing.TB, target string) *Proxy {
	tb.Helper()
	listener, err := net.Listen("tcp", net.JoinHostPort(loopback, "0"))
	if err != nil {
		tb.Fatalf("redistest: start a proxy: %v", err)
	}
	p := &Proxy{target: target, listener: listener, links: make(map[*link]struct{})}
	p.ctx, p.stop = context.WithCancel(context.Background())
	p.running.Go(p.accept)
	tb.Cleanup(p.Close)
	return p
}

// Addr is the host:port at which the proxy listens.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// SetDelay delays every reply by d. A reply that arrives while another reply of the
// connection is delayed waits for that one, and then for d.
func (p *Proxy) SetDelay(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delay = d
}

// Swallow makes the proxy a black hole: connections stay open, new ones are accepted, and
// bytes and closes from both sides are dropped. Swallow(false) closes the connections that
// lost something, so that clients reconnect, and leaves the others open.
func (p *Proxy) Swallow(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.swallow = on
	for l := range p.links {
		if l.lost && !on {
			l.cut()
		}
	}
}

// DropReplies drops the next n replies and closes their connections, so that clients retry
// commands that have run. Replies of a connection's handshake are forwarded and do not
// count.
func (p *Proxy) DropReplies(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.drops = n
}

// SetLoss drops each reply with a probability, like DropReplies.
func (p *Proxy) SetLoss(probability float64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.loss = probability
}

// CutAll closes every connection. New ones are accepted.
func (p *Proxy) CutAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.links {
		l.cut()
	}
}

// Close stops listening, closes every connection, and returns once all goroutines of the
// proxy have ended.
func (p *Proxy) Close() {
	p.stop()
	_ = p.listener.Close()
	p.CutAll()
	p.running.Wait()
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.running.Go(func() { p.serve(client) })
	}
}

func (p *Proxy) serve(client net.Conn) {
	server, err := new(net.Dialer).DialContext(p.ctx, "tcp", p.target)
	if err != nil {
		_ = client.Close()
		return
	}
	l := &link{client: client, server: server}
	l.ctx, l.cancel = context.WithCancel(p.ctx)
	p.add(l)
	var directions sync.WaitGroup
	directions.Go(func() { p.passRequests(l) })
	directions.Go(func() { p.passReplies(l) })
	directions.Wait()
	<-l.ctx.Done()
	p.remove(l)
}

func (p *Proxy) add(l *link) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.links[l] = struct{}{}
	if p.ctx.Err() != nil {
		l.cut() // the proxy was closed meanwhile
	}
}

func (p *Proxy) remove(l *link) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.links, l)
}

func (p *Proxy) passRequests(l *link) {
	defer p.end(l)
	buffer := make([]byte, 64<<10)
	for {
		n, err := l.client.Read(buffer)
		if err != nil {
			return
		}
		if !p.passesRequest(l, buffer[:n]) {
			continue
		}
		if _, err = l.server.Write(buffer[:n]); err != nil {
			return
		}
	}
}

func (p *Proxy) passReplies(l *link) {
	defer p.end(l)
	buffer := make([]byte, 64<<10)
	for {
		n, err := l.server.Read(buffer)
		if err != nil {
			return
		}
		p.hold(l)
		if !p.passesReply(l) {
			continue
		}
		if _, err = l.client.Write(buffer[:n]); err != nil {
			return
		}
	}
}

// hold waits for the delay, or until the link is closed.
func (p *Proxy) hold(l *link) {
	p.mu.Lock()
	delay := p.delay
	p.mu.Unlock()
	if delay <= 0 {
		return
	}
	select {
	case <-time.After(delay):
	case <-l.ctx.Done():
	}
}

func (p *Proxy) passesRequest(l *link, request []byte) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.swallow {
		l.lost = true
		return false
	}
	l.handshake = isHandshake(request)
	return true
}

func (p *Proxy) passesReply(l *link) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.swallow {
		l.lost = true
		return false
	}
	if !l.handshake && (p.drops > 0 || rand.Float64() < p.loss) {
		p.drops = max(0, p.drops-1)
		l.cut()
		return false
	}
	return true
}

// end closes the link when one direction has ended. A black hole keeps it open.
func (p *Proxy) end(l *link) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.swallow {
		l.lost = true
		return
	}
	l.cut()
}

// A link is a client's connection and its counterpart to the server.
type link struct {
	client, server net.Conn
	ctx            context.Context // done once the link is closed
	cancel         context.CancelFunc

	lost      bool // bytes were swallowed
	handshake bool // the last request was part of a handshake
}

func (l *link) cut() {
	l.cancel()
	_ = l.client.Close()
	_ = l.server.Close()
}

// isHandshake reports whether a request starts with a command that clients send to set up
// a connection.
func isHandshake(request []byte) bool {
	words := bytes.SplitN(bytes.ToLower(request), []byte("\r\n"), 4)
	if len(words) < 3 {
		return false
	}
	switch string(words[2]) { // after *n and $length
	case "hello", "auth", "client", "select", "readonly":
		return true
	}
	return false
}
