package main

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"

	"github.com/redis/go-redis/v9"

	"github.com/infuse-go/infuse"
)

const defaultPrefix = "infuse:"

// redisStore is a storage that can also be searched for a mistake in a name or a
// prefix.
type redisStore struct {
	*infuse.RedisStorage
	client redis.UniversalClient
	prefix string
}

// surveyor is what the commands need to find a mistake in a name or a prefix. A
// store may lack it.
type surveyor interface {
	// processes returns how many subscribe to the circuit.
	processes(ctx context.Context, name string) (int64, error)
	// prefixIsUsed reports whether a process subscribes to a circuit with the prefix.
	prefixIsUsed(ctx context.Context) (bool, error)
	// otherPrefixes returns some prefixes of other circuits on the server.
	otherPrefixes(ctx context.Context) ([]string, error)
}

// The bounds of a search for other prefixes.
const (
	maxPrefixes     = 5
	maxScans        = 20 // of each server
	keysAScan       = 1000
	maxChecksPrefix = 3 // keys that are read to see whether the prefix is one of ours
)

// nodes returns the masters of a Cluster or, with all, its replicas as well; or the
// one server.
func (s *redisStore) nodes(ctx context.Context, all bool) (nodes []*redis.Client, err error) {
	cluster, ok := s.client.(*redis.ClusterClient)
	if !ok {
		return []*redis.Client{s.client.(*redis.Client)}, nil
	}
	var mu sync.Mutex
	each := cluster.ForEachMaster
	if all {
		each = cluster.ForEachShard
	}
	err = each(ctx, func(_ context.Context, node *redis.Client) error {
		mu.Lock()
		defer mu.Unlock()
		nodes = append(nodes, node)
		return nil
	})
	return nodes, err
}

func (s *redisStore) processes(ctx context.Context, name string) (n int64, err error) {
	channel := s.prefix + "{" + url.QueryEscape(name) + "}"
	nodes, err := s.nodes(ctx, true)
	for i := 0; err == nil && i < len(nodes); i++ {
		var counts map[string]int64
		counts, err = nodes[i].PubSubNumSub(ctx, channel).Result()
		n += counts[channel]
	}
	return n, err
}

func (s *redisStore) prefixIsUsed(ctx context.Context) (bool, error) {
	nodes, err := s.nodes(ctx, true)
	for i := 0; err == nil && i < len(nodes); i++ {
		var channels []string
		if channels, err = nodes[i].PubSubChannels(ctx, globEscape(s.prefix+"{")+"*}").Result(); len(channels) > 0 {
			return true, nil
		}
	}
	return false, err
}

func (s *redisStore) otherPrefixes(ctx context.Context) ([]string, error) {
	nodes, err := s.nodes(ctx, false)
	checks := make(map[string]int)
	var found []string
	for i := 0; err == nil && i < len(nodes); i++ {
		found, err = s.search(ctx, nodes[i], found, checks)
	}
	slices.Sort(found)
	return found, err
}

func (s *redisStore) search(ctx context.Context, node *redis.Client, found []string, checks map[string]int) ([]string, error) {
	cursor := uint64(0)
	for range maxScans {
		keys, next, err := node.Scan(ctx, cursor, "*{*}", keysAScan).Result()
		if err != nil {
			return found, err
		}
		for _, key := range keys {
			prefix, ok := prefixOf(key)
			if !ok || prefix == s.prefix || checks[prefix] >= maxChecksPrefix {
				continue
			}
			checks[prefix]++
			fields, err := node.HMGet(ctx, key, "v", "n", "r").Result()
			if err != nil && !isReply(err) { // another type, or another's that may not be read
				return found, err
			}
			if err == nil && isVersion(fields[0]) && (fields[1] != nil || fields[2] != nil) {
				found, checks[prefix] = append(found, prefix), maxChecksPrefix
			}
			if len(found) == maxPrefixes {
				return found, nil
			}
		}
		if cursor = next; cursor == 0 {
			break
		}
	}
	return found, nil
}

// prefixOf returns the prefix of a key that may be a circuit's.
func prefixOf(key string) (prefix string, ok bool) {
	brace := strings.LastIndexByte(key, '{')
	if brace <= 0 || !strings.HasSuffix(key, "}") {
		return "", false
	}
	escaped := key[brace+1 : len(key)-1]
	name, err := url.QueryUnescape(escaped)
	return key[:brace], err == nil && url.QueryEscape(name) == escaped && infuse.CheckName(name) == nil
}

func isVersion(field any) bool {
	text, ok := field.(string)
	return ok && text != "" && strings.Trim(text, "0123456789") == ""
}

// globEscape returns a pattern of Redis's that matches s alone.
func globEscape(s string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`, `]`, `\]`, `^`, `\^`).Replace(s)
}

// others is a sentence that names the other prefixes; empty if there are none, or if
// they cannot be searched for.
func (j *job) others(ctx context.Context) string {
	s, ok := j.storage.(surveyor)
	if !ok {
		return ""
	}
	found, err := s.otherPrefixes(ctx)
	if err != nil || len(found) == 0 {
		return ""
	}
	for i, prefix := range found {
		found[i] = fmt.Sprintf("%q", prefix)
	}
	more := ""
	if len(found) == maxPrefixes {
		more = " and maybe more"
	}
	return fmt.Sprintf("; this Redis has circuits with other prefixes: %s%s (pass -prefix, or set INFUSE_PREFIX)", strings.Join(found, ", "), more)
}

// nothingFound is for a prefix without circuits. It returns an error if no process
// uses the prefix while there are others: then it is probably the wrong one.
func (j *job) nothingFound(ctx context.Context) error {
	others := j.others(ctx)
	if others == "" {
		return nil
	}
	used, err := j.storage.(surveyor).prefixIsUsed(ctx)
	switch {
	case used:
		return nil
	case err != nil:
		j.notice(fmt.Sprintf("no circuit has a record with the prefix %q%s", j.prefix, others))
		return nil
	}
	return fmt.Errorf("no circuit has a record with the prefix %q, and no process uses the prefix%s", j.prefix, others)
}

// unused returns an error if no process uses the circuit, as far as Redis shows.
func (j *job) unused(ctx context.Context, c *circuit) (unused bool, err error) {
	s, ok := j.storage.(surveyor)
	if !ok || c.OnRecord || len(c.History) > 0 {
		return false, nil
	}
	n, err := s.processes(ctx, c.Circuit)
	return n == 0 && err == nil, err
}

// requireUsed returns an error if the circuit may be a misspelt one.
func (j *job) requireUsed(ctx context.Context, c *circuit) error {
	if j.force {
		return nil
	}
	unused, err := j.unused(ctx, c)
	switch {
	case err != nil && !isReply(err):
		return err
	case err != nil:
		return fmt.Errorf("circuit %s has no record, and whether a process uses it cannot be checked (%w); if the name is right, pass -force", quoted(c.Circuit), err)
	case unused:
		return fmt.Errorf("circuit %s is not used: no record, no history, and no process subscribes to it%s; if the name is right, pass -force", quoted(c.Circuit), j.others(ctx))
	}
	return nil
}
