package main

// This file contains the search for a mistake in a name or a prefix.

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

// redisStore is a RedisStorage that is also a surveyor.
type redisStore struct {
	*infuse.RedisStorage
	client redis.UniversalClient
	prefix string
}

// surveyor finds out whether names and prefixes are in use. A store may lack it.
type surveyor interface {
	// processes returns the number of subscribers of the circuit.
	processes(ctx context.Context, name string) (int64, error)
	// prefixIsUsed reports whether any circuit with the prefix has a subscriber.
	prefixIsUsed(ctx context.Context) (bool, error)
	// otherPrefixes returns up to maxPrefixes other prefixes on the server.
	otherPrefixes(ctx context.Context) ([]string, error)
}

// The limits of a search for other prefixes.
const (
	maxPrefixes     = 5
	maxScans        = 20 // per server
	keysAScan       = 1000
	maxChecksPrefix = 3 // keys that are read per prefix, to check that they are records
)

// nodes returns the masters of a Cluster, with all also its replicas; or the single
// server.
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
			if err != nil && !isReply(err) { // another type, or a forbidden key
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

// prefixOf returns the prefix of a key, if it may be the key of a circuit.
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

// globEscape returns a Redis pattern that matches only s.
func globEscape(s string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`, `]`, `\]`, `^`, `\^`).Replace(s)
}

// others describes the other prefixes; empty if none are found.
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

// nothingFound returns an error if the prefix is probably wrong: it has no circuits and
// no subscribers, and there are circuits with other prefixes.
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

// unused reports whether the circuit has no record, no history and no subscriber.
func (j *job) unused(ctx context.Context, c *circuit) (unused bool, err error) {
	s, ok := j.storage.(surveyor)
	if !ok || c.OnRecord || len(c.History) > 0 {
		return false, nil
	}
	n, err := s.processes(ctx, c.Circuit)
	return n == 0 && err == nil, err
}

// requireUsed returns an error if the name may be misspelt.
func (j *job) requireUsed(ctx context.Context, c *circuit) error {
	if j.force {
		return nil
	}
	unused, err := j.unused(ctx, c)
	switch {
	case err != nil && !isReply(err):
		return err
	case err != nil:
		return fmt.Errorf("circuit %s has no record, and the search for its subscribers failed (%w); if the name is right, pass -force", quoted(c.Circuit), err)
	case unused:
		return fmt.Errorf("circuit %s is not used: no record, no history, and no process subscribes to it%s; if the name is right, pass -force", quoted(c.Circuit), j.others(ctx))
	}
	return nil
}
