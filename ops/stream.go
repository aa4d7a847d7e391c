package ops

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"sync"
	"time"
)

// This file is how an open page is kept up to date: one loop for all viewers,
// which ends with the last of them, and a frame for all who look at the same.

const (
	tick       = 500 * time.Millisecond // between two looks at this process's circuits
	settleTime = 50 * time.Millisecond  // news that come together make one frame
	readEvery  = 5 * time.Second        // between two readings of the storage,
	readShare  = 9                      // or so many times as long as the last took
	heartbeat  = 15 * time.Second       // a comment: it shows whether the viewer is there
	writeTime  = 10 * time.Second       // a viewer that takes longer to read is dropped
	streamTime = 5 * time.Minute        // a browser asks again then
	mostViewer = 1000
)

// stream is the loop, and what viewers look at.
type stream struct {
	board *board

	mu      sync.Mutex
	viewers int
	frames  map[query]*frames
	end     context.CancelFunc // of the loop
	ended   chan struct{}
}

// frames are what those see who look at the same circuits.
type frames struct {
	viewers int
	number  uint64
	fresh   chan struct{} // closed by the next frame
	report  *report
	rows    []row
	full    []byte // for who has not had the frame before
	delta   []byte // for who has
}

// frame is what a browser is told. What is nil has not changed.
type frame struct {
	Full    bool     `json:"full"`
	Summary string   `json:"summary"`
	Note    string   `json:"note"`
	Order   []string `json:"order"`
	Rows    []row    `json:"rows"`
}

func (s *stream) running() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.viewers > 0
}

// join adds a viewer. The first starts the loop.
func (s *stream) join(q query) (*frames, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.viewers == mostViewer {
		return nil, false
	}
	if s.viewers++; s.viewers == 1 {
		s.begin()
	}
	f := s.frames[q]
	if f == nil {
		f = &frames{fresh: make(chan struct{})}
		s.frames[q] = f
	}
	f.viewers++
	return f, true
}

// begin starts the loop, once the last one has ended.
func (s *stream) begin() {
	before := s.ended
	ctx, cancel := context.WithCancel(context.Background())
	s.frames, s.end, s.ended = make(map[query]*frames), cancel, make(chan struct{})
	go func(ended chan struct{}) {
		defer close(ended)
		if before != nil {
			<-before
		}
		s.loop(ctx)
	}(s.ended)
}

func (s *stream) leave(q query) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.frames[q]; f != nil {
		if f.viewers--; f.viewers == 0 {
			delete(s.frames, q)
		}
	}
	if s.viewers--; s.viewers == 0 {
		s.end()
	}
}

// loop makes frames until the last viewer has gone.
func (s *stream) loop(ctx context.Context) {
	news := make(chan struct{}, 1)
	s.board.look(func() {
		select {
		case news <- struct{}{}:
		default:
		}
	})
	defer s.board.lookAway()
	var reader sync.WaitGroup
	defer reader.Wait()
	moved := make(chan struct{}, 1)
	if s.board.storage != nil {
		reader.Go(func() { s.read(ctx, moved) })
	}
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for ctx.Err() == nil {
		s.draw()
		select {
		case <-ctx.Done():
		case <-ticker.C:
		case <-news:
			select {
			case moved <- struct{}{}:
			default:
			}
			sleep(ctx, settleTime)
		}
	}
}

// read reads the storage over and over, and the histories of circuits that have
// moved. A storage that takes long, or has much, is asked less often.
func (s *stream) read(ctx context.Context, moved <-chan struct{}) {
	for ctx.Err() == nil {
		began := time.Now()
		s.board.list.fresh(ctx, 0)
		s.readHistories(ctx, true)
		next := time.NewTimer(max(readEvery, readShare*time.Since(began)))
		for waiting := true; waiting; {
			select {
			case <-moved:
				sleep(ctx, settleTime)
				s.readHistories(ctx, false)
			case <-next.C:
				waiting = false
			case <-ctx.Done():
				next.Stop()
				return
			}
		}
	}
}

// readHistories reads the histories that somebody looks at: all, or those that
// are out of date.
func (s *stream) readHistories(ctx context.Context, all bool) {
	wanted := make(map[string]bool)
	s.mu.Lock()
	for q := range s.frames {
		wanted[q.Circuit] = true
	}
	s.mu.Unlock()
	delete(wanted, "")
	for circuit := range wanted {
		if all || s.board.isStale(circuit) {
			s.board.detail(circuit).fresh(ctx, 0)
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

// draw makes the frames that have changed.
func (s *stream) draw() {
	s.mu.Lock()
	queries := make(map[query]*frames, len(s.frames))
	for q, f := range s.frames {
		queries[q] = f
	}
	s.mu.Unlock()
	now := s.board.snapshot()
	for q, f := range queries {
		s.redraw(f, s.board.report(now, q))
	}
}

func (s *stream) redraw(f *frames, r *report) {
	next, delta := f.next(r) // only the loop writes f
	if delta == nil {
		return
	}
	full := &frame{Full: true, Summary: r.Summary(), Note: note(r), Order: order(next), Rows: next}
	whole, part := encode(full), encode(delta)
	s.mu.Lock()
	defer s.mu.Unlock()
	f.report, f.rows, f.full, f.delta = r, next, whole, part
	f.number++
	close(f.fresh)
	f.fresh = make(chan struct{})
}

// next returns the rows of a report, and what has changed: nil for nothing.
func (f *frames) next(r *report) (next []row, delta *frame) {
	had := make(map[string]int)
	for i, row := range f.rows {
		had[row.ID] = i
	}
	delta = &frame{Summary: r.Summary(), Note: note(r)}
	for i := range r.Circuits {
		old, ok := had[rowID(r.Circuits[i].Name)]
		if ok && reflect.DeepEqual(f.report.Circuits[old], r.Circuits[i]) {
			next = append(next, f.rows[old])
			continue
		}
		drawn := rowOf(&r.Circuits[i])
		next, delta.Rows = append(next, drawn), append(delta.Rows, drawn)
	}
	if f.report == nil || !slices.Equal(order(f.rows), order(next)) {
		delta.Order = order(next)
	}
	if f.report != nil && delta.Order == nil && delta.Rows == nil && delta.Summary == f.report.Summary() && delta.Note == note(f.report) {
		return next, nil
	}
	return next, delta
}

func order(rows []row) []string {
	ids := make([]string, len(rows))
	for i := range rows {
		ids[i] = rows[i].ID
	}
	return ids
}

// note is what a page says besides its circuits, as HTML.
func note(r *report) string {
	var text bytes.Buffer
	_ = templates.ExecuteTemplate(&text, "note", r)
	return text.String()
}

func encode(f *frame) []byte {
	data, err := json.Marshal(f)
	if err != nil {
		return nil
	}
	return fmt.Appendf(nil, "data: %s\n\n", data) // JSON has no line breaks of its own
}

// after returns what a viewer who has had that frame is to see next: nil for
// nothing yet.
func (s *stream) after(f *frames, had uint64) (data []byte, number uint64, fresh <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch f.number {
	case had:
		return nil, had, f.fresh
	case had + 1:
		if had > 0 {
			return f.delta, f.number, f.fresh
		}
	}
	return f.full, f.number, f.fresh
}

// live answers with a stream of events. Nothing is kept for a viewer who reads
// slowly: it misses frames, and is dropped when it reads none. The stream ends when
// over is done, too.
func (h *handler) live(w http.ResponseWriter, r *http.Request, over context.Context) {
	q, err := parseQuery(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	s := &h.board.stream
	f, ok := s.join(q)
	if !ok {
		w.Header().Set("Retry-After", "30")
		http.Error(w, "Too many look already.", http.StatusServiceUnavailable)
		return
	}
	defer s.leave(q)
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no") // nginx would hold it back
	ctx, cancel := context.WithTimeout(r.Context(), streamTime)
	defer cancel()
	defer context.AfterFunc(over, cancel)()
	s.follow(ctx, f, func(data []byte) error { return send(w, data) })
}

func (s *stream) follow(ctx context.Context, f *frames, send func([]byte) error) {
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	had := uint64(0)
	err := send([]byte("retry: 2000\n\n"))
	for err == nil && ctx.Err() == nil {
		data, number, fresh := s.after(f, had)
		if had = number; data != nil {
			err = send(data)
			continue
		}
		select {
		case <-ctx.Done():
		case <-fresh:
		case <-beat.C:
			err = send([]byte(":\n\n"))
		}
	}
}

func send(w http.ResponseWriter, data []byte) error {
	control := http.NewResponseController(w)
	_ = control.SetWriteDeadline(time.Now().Add(writeTime)) // where the writer has none, the server's holds
	_, err := w.Write(data)
	if err == nil {
		err = control.Flush()
	}
	_ = control.SetWriteDeadline(time.Time{}) // HTTP/2 would end the stream then, though nothing is written
	return err
}
