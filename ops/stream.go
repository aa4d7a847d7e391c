package ops

// This file keeps open pages up to date. One loop takes snapshots for all viewers, and
// stops with the last of them. Viewers share the rendered rows.

import (
	"context"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	tick       = 500 * time.Millisecond // between two snapshots
	settleTime = 50 * time.Millisecond  // notifications within this time share a snapshot
	readEvery  = 5 * time.Second        // between two reads of the storage,
	readShare  = 9                      // or this many times as long as the last read took
	heartbeat  = 15 * time.Second       // detects viewers that have disconnected
	writeTime  = 10 * time.Second       // a viewer that reads more slowly is dropped
	streamTime = 5 * time.Minute        // the browser then reconnects
	maxViewers = 1000
)

// stream is the loop and its viewers.
type stream struct {
	board *board

	mu      sync.Mutex
	total   int
	clients map[string][]*viewer // by client, oldest first
	current *snapshot            // nil: none yet
	fresh   chan struct{}        // closed when current is replaced
	end     context.CancelFunc   // ends the loop
	ended   chan struct{}
}

// viewer is an open stream.
type viewer struct {
	view
	client string
	cancel context.CancelFunc

	seen   uint64 // number of the last snapshot sent; 0: none
	sent   report
	order  []*named
	one    *item  // last row sent, if the query is for one circuit
	note   string // last note sent
	marked map[*named]struct{}
	delta  []*item
}

func (s *stream) running() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.total > 0
}

// join adds a viewer. The first viewer starts the loop. If all streams are in use, the
// viewer replaces the newest viewer of the client that has the most. It does not, and join
// returns false, if that client would then have fewer than the client of the viewer.
func (s *stream) join(v *viewer) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.total == maxViewers {
		var most []*viewer
		for _, all := range s.clients {
			if len(all) > len(most) {
				most = all
			}
		}
		if len(most) < len(s.clients[v.client])+2 {
			return false
		}
		last := most[len(most)-1]
		last.cancel()
		s.remove(last)
	}
	if s.total == 0 {
		s.begin()
	}
	if s.clients == nil {
		s.clients = make(map[string][]*viewer)
	}
	s.clients[v.client] = append(s.clients[v.client], v)
	s.total++
	return true
}

func (s *stream) leave(v *viewer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.remove(v); s.total == 0 && s.end != nil {
		s.end()
		s.end, s.current = nil, nil
	}
}

// remove does nothing if the viewer was already replaced.
func (s *stream) remove(v *viewer) {
	all := s.clients[v.client]
	i := slices.Index(all, v)
	if i < 0 {
		return
	}
	s.total--
	if all = slices.Delete(all, i, i+1); len(all) == 0 {
		delete(s.clients, v.client)
	} else {
		s.clients[v.client] = all
	}
}

// begin starts the loop, after the previous loop has ended.
func (s *stream) begin() {
	ctx, cancel := context.WithCancel(context.Background())
	before := s.ended
	s.end, s.ended, s.fresh = cancel, make(chan struct{}), make(chan struct{})
	go func(ended chan struct{}) {
		defer close(ended)
		if before != nil {
			<-before
		}
		s.loop(ctx)
	}(s.ended)
}

// loop takes snapshots until the last viewer has left.
func (s *stream) loop(ctx context.Context) {
	notified := make(chan struct{}, 1)
	s.board.startWatching(func() {
		select {
		case notified <- struct{}{}:
		default:
		}
	})
	defer s.board.stopWatching()
	var reader sync.WaitGroup
	defer reader.Wait()
	changed := make(chan struct{}, 1)
	if s.board.storage != nil {
		reader.Go(func() { s.read(ctx, changed) })
	}
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for ctx.Err() == nil {
		s.publish(ctx)
		select {
		case <-ctx.Done():
		case <-ticker.C:
		case <-notified:
			select {
			case changed <- struct{}{}:
			default:
			}
			sleep(ctx, settleTime)
		}
	}
}

// publish takes a snapshot, and wakes the viewers if it differs from the last one.
func (s *stream) publish(ctx context.Context) {
	next := s.board.snapshot(0)
	s.mu.Lock()
	defer s.mu.Unlock()
	if ctx.Err() == nil && s.current != next {
		s.current = next
		close(s.fresh)
		s.fresh = make(chan struct{})
	}
}

// read polls the storage, and reads the histories of circuits that have changed. It polls
// a slow or large storage less often.
func (s *stream) read(ctx context.Context, changed <-chan struct{}) {
	for ctx.Err() == nil {
		began := time.Now()
		s.board.list.refresh(ctx, 0)
		s.readHistories(ctx)
		next := time.NewTimer(max(readEvery, readShare*time.Since(began)))
		for waiting := true; waiting; {
			select {
			case <-changed:
				sleep(ctx, settleTime)
				s.readHistories(ctx)
			case <-next.C:
				waiting = false
			case <-ctx.Done():
				next.Stop()
				return
			}
		}
	}
}

// readHistories reads the histories that a page shows and that are out of date.
func (s *stream) readHistories(ctx context.Context) {
	wanted := make(map[string]bool)
	s.mu.Lock()
	for _, all := range s.clients {
		for _, v := range all {
			wanted[v.Circuit] = true
		}
	}
	s.mu.Unlock()
	delete(wanted, "")
	for circuit := range wanted {
		if s.board.isStale(circuit) {
			s.board.detail(circuit).refresh(ctx, 0)
		}
	}
}

func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// pending returns the frame with the changes since the last frame, or nil if there are
// none, and a channel that is closed when there is a new snapshot.
func (v *viewer) pending(s *stream) (*frame, <-chan struct{}) {
	s.mu.Lock()
	current, fresh := s.current, s.fresh
	s.mu.Unlock()
	if current == nil {
		return nil, fresh
	}
	return v.next(current), fresh
}

// live answers with a stream of events. A viewer that reads slowly skips snapshots. A
// viewer that does not read is dropped. The stream also ends when shutdown is done.
func (h *handler) live(w http.ResponseWriter, r *http.Request, shutdown context.Context) {
	q, err := parseQuery(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), streamTime)
	defer cancel()
	defer context.AfterFunc(shutdown, cancel)()
	v := &viewer{view: view{query: q, board: h.board}, client: h.client(r), cancel: cancel}
	s := &h.board.stream
	if !s.join(v) {
		w.Header().Set("Retry-After", "30")
		http.Error(w, "Too many viewers. Try again later.", http.StatusServiceUnavailable)
		return
	}
	defer s.leave(v)
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no") // otherwise nginx buffers the stream
	v.follow(ctx, s, w)
}

func (v *viewer) follow(ctx context.Context, s *stream, w http.ResponseWriter) {
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	err := send(w, func(w io.Writer) error { return writeAll(w, "retry: 2000\n\n") })
	for err == nil && ctx.Err() == nil {
		f, fresh := v.pending(s)
		if f != nil {
			err = send(w, f.write)
			continue
		}
		select {
		case <-ctx.Done():
		case <-fresh:
		case <-beat.C:
			err = send(w, func(w io.Writer) error { return writeAll(w, ":\n\n") })
		}
	}
}

// frame is one event: the new order of the circuits, if it has changed, and the rows that
// have changed.
type frame struct {
	full    bool
	summary string
	note    string
	ordered bool
	order   []*named
	rows    []*item
}

// next returns the frame from the last snapshot sent to s, or nil if nothing on the page
// differs.
func (v *viewer) next(s *snapshot) *frame {
	if v.seen == s.number {
		return nil
	}
	rows, report := v.selection(s)
	f := &frame{full: v.seen == 0, rows: rows}
	f.ordered = f.full || !slices.EqualFunc(rows, v.order, func(row *item, n *named) bool { return row.named == n })
	if !f.full {
		f.rows = v.changed(s, rows, f.ordered)
	}
	if !f.full && !f.ordered && len(f.rows) == 0 && report.same(&v.sent) {
		v.seen = s.number
		return nil
	}
	if f.full || !report.same(&v.sent) {
		v.note = note(report)
	}
	if f.ordered {
		v.order = v.order[:0]
		for _, row := range rows {
			v.order = append(v.order, row.named)
		}
	}
	if v.Circuit != "" && len(rows) == 1 {
		v.one = rows[0]
	}
	v.seen, v.sent = s.number, *report
	f.order, f.summary, f.note = v.order, report.Summary(), v.note
	return f
}

// changed returns the rows of which the viewer does not have the current version.
func (v *viewer) changed(s *snapshot, rows []*item, ordered bool) []*item {
	v.delta = v.delta[:0]
	if v.Circuit != "" {
		if len(rows) == 1 && rows[0] != v.one {
			v.delta = append(v.delta, rows[0])
		}
		return v.delta
	}
	had := func(int) bool { return true }
	if ordered {
		had = v.had(s, rows)
	}
	for i, row := range rows {
		if row.changed > v.seen || !had(i) {
			v.delta = append(v.delta, row)
		}
	}
	return v.delta
}

// had returns a function that reports whether any version of a row was sent before.
func (v *viewer) had(s *snapshot, rows []*item) func(i int) bool {
	place := func(i int) int { return int(s.was[i]) }
	if v.Filter != "" {
		place = func(i int) int { return int(s.was[v.at[i]]) }
	}
	switch before := v.seen == s.number-1; {
	case before && v.Filter == "": // the previous snapshot was sent, up to the limit
		return func(i int) bool { return place(i) >= 0 && place(i) < v.Limit }
	case before && v.sent.LeftOut == 0:
		return func(i int) bool { return place(i) >= 0 }
	}
	if v.marked == nil {
		v.marked = make(map[*named]struct{})
	}
	clear(v.marked)
	for _, n := range v.order {
		v.marked[n] = struct{}{}
	}
	return func(i int) bool { _, ok := v.marked[rows[i].named]; return ok }
}

// note returns the HTML of the note above the circuits.
func note(r *report) string {
	text, _ := execute("note", r)
	return strings.TrimSpace(string(text))
}

func (f *frame) write(w io.Writer) error {
	head := encode(struct {
		Full    bool   `json:"full"`
		Summary string `json:"summary"`
		Note    string `json:"note"`
	}{f.full, f.summary, f.note})
	err := writeAll(w, "data: ", string(head[:len(head)-1])) // the JSON has no line breaks
	if f.ordered && err == nil {
		err = writeAll(w, `,"order":[`)
		for i, n := range f.order {
			if i > 0 && err == nil {
				err = writeAll(w, ",")
			}
			if err == nil {
				err = writeAll(w, `"`, n.id, `"`)
			}
		}
		if err == nil {
			err = writeAll(w, "]")
		}
	}
	if err == nil {
		err = writeList(w, `,"rows":`, f.rows, (*item).row, "}\n\n")
	}
	return err
}

func send(w http.ResponseWriter, write func(io.Writer) error) error {
	control := http.NewResponseController(w)
	_ = control.SetWriteDeadline(time.Now().Add(writeTime)) // ignored if the writer has no deadline
	err := buffered(w, write)
	if err == nil {
		err = control.Flush()
	}
	_ = control.SetWriteDeadline(time.Time{}) // otherwise HTTP/2 ends an idle stream
	return err
}
