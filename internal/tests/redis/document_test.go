package redis_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/redistest"
)

// docs/redis.md and bench/RESULTS.md held against a server: the ACL, and what a circuit costs.

func redisDocument(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("docs/redis.md")
	require.NoError(t, err)
	return string(text)
}

func figures(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("bench/RESULTS.md")
	require.NoError(t, err)
	return string(text)
}

// leastACL returns the command of the document, as its words.
func leastACL(t *testing.T) []string {
	t.Helper()
	m := regexp.MustCompile("(?m)^ACL SETUSER infuse on >password .*$").FindString(redisDocument(t))
	require.NotEmpty(t, m)
	return strings.Fields(m)
}

// limitedTo makes the user anew with this command, and returns a client of his.
func limitedTo(t *testing.T, server *redistest.Server, command []string) *redis.Client {
	t.Helper()
	admin := server.Client()
	for _, words := range [][]string{{"acl", "deluser", "infuse"}, command, {"script", "flush"}, {"flushall"}} {
		args := make([]any, len(words))
		for i, word := range words {
			args[i] = word
		}
		require.NoError(t, admin.Do(t.Context(), args...).Err(), words)
	}
	return server.Client(func(o *redis.Options) { o.Username, o.Password = "infuse", "password" })
}

func TestMinimalACL(t *testing.T) {
	server := redistest.Start(t)
	use := func(command []string) error {
		s := newSender(t, limitedTo(t, server, command), "one")
		heard := make(chan infuse.Record, 100)
		defer s.Watch("circuit", func(r infuse.Record) { heard <- r })()
		for _, c := range []infuse.Change{failures(1), success(), failures(5), move(infuse.StateHalfOpen), {RequestTrial: "a"}, {Settled: []infuse.Settlement{{ID: "a"}}}} {
			if _, err := s.send(c); err != nil {
				return err
			}
		}
		return nil
	}
	command := leastACL(t)
	require.NoError(t, use(command))
	rules := 5 // ACL SETUSER infuse on >password
	require.Greater(t, len(command), rules)
	for i, rule := range command[rules:] {
		switch rule {
		case "&infuse:*", "+publish", "+subscribe", "+unsubscribe", "+ping": // needed for Pub/Sub, which changes do without
			continue
		}
		assert.Error(t, use(slices.Delete(slices.Clone(command), rules+i, rules+i+1)), "without %s", rule)
	}
}

// TestFurtherRights: the list below the least ACL says what each is for.
func TestFurtherRights(t *testing.T) {
	document := redisDocument(t)
	server := redistest.Start(t)
	opens := func(s *sender) { require.Equal(t, infuse.VerdictChanged, s.must(move(infuse.StateOpen))) }
	for _, right := range []struct {
		rules string
		uses  func(s *sender) error
	}{
		{"+hgetall +hdel", func(s *sender) error {
			for i := range 520 {
				s.source = fmt.Sprint("source", i)
				if _, err := s.send(failures(1)); err != nil {
					return err
				}
			}
			return nil
		}},
		{"+lpush +ltrim +expire +lrange", func(s *sender) error {
			opens(s)
			events, err := s.History(t.Context(), "circuit")
			if err == nil && len(events) != 1 {
				err = fmt.Errorf("%d events", len(events))
			}
			return err
		}},
		{"+scan", func(s *sender) error {
			opens(s)
			for _, err := range s.Circuits(t.Context()) {
				return err
			}
			return errors.New("no circuits")
		}},
		{"+del", func(s *sender) error {
			require.NoError(t, server.Client().Set(t.Context(), "infuse:{circuit}", "x", 0).Err())
			_, err := s.send(move(infuse.StateOpen))
			return err
		}},
	} {
		require.True(t, strings.Contains(document, "- `"+right.rules+"`"), right.rules)
		use := func(rules ...string) error {
			s := newSender(t, limitedTo(t, server, append(leastACL(t), rules...)), "one")
			s.limits.FailMax = 1000
			return right.uses(s)
		}
		assert.Error(t, use(), "without %s", right.rules)
		assert.NoError(t, use(strings.Fields(right.rules)...), "with %s", right.rules)
	}
}

// The log said only that the storage did not answer, where the port refused
// connections: go-redis was still dialling. With the document's options it is done.
func TestAClientThatGivesUpAtOnceTellsWhy(t *testing.T) {
	t.Parallel()
	require.Contains(t, redisDocument(t), "`DialerRetries: 1, MaxRetries: -1`")
	refused := func(context.Context, string, string) (net.Conn, error) { return nil, syscall.ECONNREFUSED }
	client := redis.NewClient(&redis.Options{Dialer: refused, DialerRetries: 1, MaxRetries: -1})
	defer client.Close()
	storage := infuse.NewRedisStorage(client, infuse.RedisOptions{})
	defer storage.Close()
	b, err := infuse.New("circuit", infuse.Config{Storage: storage, StorageTimeout: time.Second})
	require.NoError(t, err)
	defer b.Stop()
	require.ErrorContains(t, b.Stats().StorageErr, "connection refused")
}

// What a process sends, step by step in the life of a circuit.

// TestWhatACircuitSends computes the document's table of commands. Messages that arrive
// together cause one read, and a message that arrives before the reply to its own change
// causes another.
func TestWhatACircuitSends(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	admin, failed := server.Client(), errors.New("failed")
	loadScripts(t, admin)
	var b, other *infuse.Breaker
	var suspected time.Time
	call := func(b *infuse.Breaker, err error) {
		_ = b.Call(t.Context(), func(context.Context) error { return err })
	}
	times := func(n int, do func()) func() {
		return func() {
			for range n {
				do()
			}
		}
	}
	reach := func(state infuse.State) func() {
		return func() {
			for _, b := range []*infuse.Breaker{b, other} {
				require.Eventually(t, func() bool { return b.State() == state }, 20*time.Second, time.Millisecond)
			}
		}
	}
	table := "| what happens | scripts run | messages published |\n|---|--:|--:|\n"
	for _, step := range []struct {
		what   string
		within string // "least to most" scripts, if the order of messages and replies matters
		do     func()
	}{
		{"a breaker is made, and subscribes", "", func() { b = breakerOn(t, server) }},
		{"a breaker of another process is made", "", func() { other = breakerOn(t, server) }},
		{"1,000 calls succeed", "", times(1000, func() { call(b, nil) })},
		{"a call fails", "", func() { call(b, failed) }},
		{"the next call succeeds, and resets the streak", "", func() { call(b, nil) }},
		{"three calls of one process fail, the threshold: the circuit is suspect", "3 to 5", func() {
			times(3, func() { call(b, failed) })()
			suspected = time.Now()
		}},
		{"50 ms later three calls of the other fail: the circuit is open", "5 to 6", func() {
			time.Sleep(time.Until(suspected.Add(100 * time.Millisecond)))
			times(3, func() { call(other, failed) })()
			reach(infuse.StateOpen)()
		}},
		{"1,000 calls are rejected in each of the two", "", times(1000, func() { call(b, nil); call(other, nil) })},
		{"a trial runs, and succeeds: the circuit closes", "4 to 6", func() {
			time.Sleep(time.Until(b.Stats().Shared.DueAt) + 50*time.Millisecond) // one that is early asks twice
			require.Eventually(t, func() bool { call(b, nil); return b.State() == infuse.StateClosed }, 20*time.Second, 10*time.Millisecond)
			reach(infuse.StateClosed)()
		}},
		{"a manual change", "", func() { require.NoError(t, b.SetState(t.Context(), infuse.StateOpen)) }},
	} {
		before := quietCommands(t, server)
		step.do()
		after := quietCommands(t, server)
		scripts := fmt.Sprint(after["evalsha"] - before["evalsha"])
		if r := step.within; r != "" && scripts >= r[:1] && scripts <= r[len(r)-1:] {
			scripts = r
		}
		table += fmt.Sprintf("| %s | %s | %d |\n", step.what, scripts, after["publish"]-before["publish"])
		require.Equal(t, before["eval"], after["eval"])
	}
	require.True(t, strings.Contains(figures(t), table), "bench/RESULTS.md must have:\n%s", table)
}

// breakerOn returns the breaker of one more process.
func breakerOn(t *testing.T, server *redistest.Server) *infuse.Breaker {
	t.Helper()
	storage := infuse.NewRedisStorage(server.Client(), infuse.RedisOptions{PollInterval: time.Hour})
	b, err := infuse.New("inventory.internal", infuse.Config{Storage: storage, FailMax: 3, ResetTimeout: 5 * time.Second, StorageTimeout: time.Minute})
	require.NoError(t, err)
	t.Cleanup(func() { b.Stop(); require.NoError(t, storage.Close()) })
	return b
}

// quietCommands returns the commands that a server has run, once it is asked
// for no more of them.
func quietCommands(t *testing.T, server *redistest.Server) (commands map[string]int64) {
	t.Helper()
	require.Eventually(t, func() bool {
		before := commands
		var err error
		commands, err = server.Commands(t.Context())
		require.NoError(t, err)
		maps.DeleteFunc(commands, func(name string, _ int64) bool {
			return name == "info" || name == "hello" || strings.HasPrefix(name, "client")
		})
		return maps.Equal(before, commands)
	}, 20*time.Second, 200*time.Millisecond)
	return commands
}

// randomSource is as long as the source of a process.
func randomSource() string { return strconv.FormatUint(rand.Uint64()|1<<63, 36) }

// TestWhatACircuitKeeps holds the document's bounds of memory against a server.
func TestWhatACircuitKeeps(t *testing.T) {
	server := redistest.Start(t)
	admin := server.Client()
	usage := func(key string) int64 {
		n, err := admin.MemoryUsage(t.Context(), key, 0).Result()
		require.NoError(t, err)
		return n
	}
	one := newSender(t, admin, "one")
	one.source = randomSource()
	change := func(c infuse.Change) infuse.Change {
		c.By, c.Cause = "orders-7d9f8b6c5-x2x4z:1", "503 Service Unavailable"
		return c
	}
	one.must(change(failures(1)))
	counted := usage("infuse:{circuit}")
	one.must(change(failures(4)))
	opened := usage("infuse:{circuit}")
	one.must(move(infuse.StateClosed))
	one.limits.FailMax = 10000
	one.must(change(failures(1)))
	before := usage("infuse:{circuit}")
	for range 500 {
		one.source = randomSource()
		one.must(change(failures(1)))
	}
	source := (usage("infuse:{circuit}") - before) / 500
	longest := strings.Repeat("x", 200)
	for range infuse.MaxHistory {
		one.must(infuse.Change{Override: &infuse.Override{State: infuse.StateOpen, By: longest, Reason: longest}})
	}
	history := usage("infuse:{circuit}:log")
	for _, bound := range []struct {
		what     string
		is, most int64
	}{
		{"failures that were counted", counted, 256},
		{"a circuit that has opened", opened, 1024},
		{"each further process that reports", source, 128},
		{"a history of 50 events with the longest texts", history, 32 << 10},
	} {
		assert.LessOrEqual(t, bound.is, bound.most, bound.what)
		row := fmt.Sprintf("| %s | %d |\n", bound.what, bound.most)
		assert.True(t, strings.Contains(figures(t), row), "bench/RESULTS.md must have %s", row)
	}
}
