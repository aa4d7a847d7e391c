package main

// This file contains the connection to Redis: its URL, its kind, and TLS.

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/infuse-go/infuse"
)

// openRedis returns the storage at the URL of the options. If the server is a node of a
// Cluster, it uses the whole Cluster, and reports that with notice.
func openRedis(ctx context.Context, o *options, notice func(string)) (store, func(), error) {
	client, err := connect(o)
	if err != nil {
		return nil, nil, err
	}
	if single, ok := client.(*redis.Client); ok && !isSentinelURL(o.redis) {
		if client, err = asCluster(ctx, single, o, notice); err != nil {
			_ = single.Close()
			return nil, nil, err
		}
	}
	prefix := cmp.Or(o.prefix, defaultPrefix)
	storage := infuse.NewRedisStorage(client, infuse.RedisOptions{Prefix: prefix})
	return &redisStore{storage, client, prefix}, func() {
		_ = storage.Close()
		_ = client.Close()
	}, nil
}

// asCluster returns a client of the whole Cluster, and closes the given one, if the
// server is a node of a Cluster. Otherwise it returns the given client.
func asCluster(ctx context.Context, client *redis.Client, o *options, notice func(string)) (redis.UniversalClient, error) {
	mode, err := modeOf(ctx, client)
	switch {
	case err != nil:
		return nil, err
	case mode == "sentinel":
		return nil, usageErrorf("this server is a Sentinel: add ?master_name=NAME to the URL of Redis")
	case mode != "cluster":
		return client, nil
	}
	whole := *o
	whole.cluster = true
	cluster, err := connect(&whole)
	if err != nil {
		return nil, usageErrorf("this server is a node of a Redis Cluster, and the URL does not fit a Cluster; pass -cluster to see why")
	}
	_ = client.Close()
	notice("Redis is a Cluster: using all its nodes. With -cluster this check is skipped")
	return cluster, nil
}

// modeOf returns "standalone", "cluster" or "sentinel". From Redis 6 on, the reply of
// HELLO contains the mode, and needs no permission; before that, INFO contains it. A
// server that allows neither counts as standalone.
func modeOf(ctx context.Context, client *redis.Client) (string, error) {
	reply, err := client.Do(ctx, "HELLO").Result()
	if err == nil {
		return helloMode(reply), nil
	}
	if strings.Contains(err.Error(), "SELECT is not allowed in cluster mode") {
		return "", usageErrorf("this server is a node of a Redis Cluster, which has database 0 only: remove the database from the URL of Redis")
	}
	if !isReply(err) {
		return "", fmt.Errorf("redis: %w", err)
	}
	info, err := client.Info(ctx, "cluster").Result()
	switch {
	case err == nil && strings.Contains(info, "cluster_enabled:1"):
		return "cluster", nil
	case err != nil && !isReply(err):
		return "", fmt.Errorf("redis: %w", err)
	}
	return "standalone", nil
}

// isReply reports whether the error is a reply of Redis.
func isReply(err error) bool {
	var reply redis.Error
	return errors.As(err, &reply)
}

// helloMode returns the mode in a reply to HELLO: a map, or a list of names and
// values in the older protocol.
func helloMode(reply any) string {
	fields, ok := reply.(map[any]any)
	if list, isList := reply.([]any); isList {
		fields, ok = make(map[any]any), true
		for i := 0; i+1 < len(list); i += 2 {
			fields[list[i]] = list[i+1]
		}
	}
	mode, isText := fields["mode"].(string)
	if !ok || !isText {
		return "standalone"
	}
	return mode
}

// connect returns a client for the URL: for Sentinels if it has a master_name, for a
// Cluster if it has an addr, otherwise for a single server. It does no I/O except to
// read certificates.
func connect(o *options) (redis.UniversalClient, error) {
	text, err := checkURL(o.redis)
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(text)
	if err != nil {
		return nil, badURL(err)
	}
	certificates, err := tlsConfig(o)
	if err != nil {
		return nil, err
	}
	if certificates != nil && u.Scheme == "unix" {
		return nil, usageErrorf("a unix socket has no TLS: remove -tls-ca, -tls-cert and -tls-key, or use a rediss:// URL")
	}
	// secure returns the TLS settings of the URL with the certificates of the flags.
	secure := func(c *tls.Config) *tls.Config {
		if certificates == nil {
			return c
		}
		if c == nil {
			c = &tls.Config{ServerName: cmp.Or(u.Hostname(), "localhost")}
		}
		c.MinVersion, c.RootCAs, c.Certificates = tls.VersionTLS12, certificates.RootCAs, certificates.Certificates
		return c
	}
	switch query := u.Query(); {
	case query.Has("master_name"):
		c, err := redis.ParseFailoverURL(text)
		if err != nil {
			return nil, badURL(err)
		}
		c.ContextTimeoutEnabled, c.DialTimeout, c.DialerRetries = true, within(c.DialTimeout, o.timeout), cmp.Or(c.DialerRetries, 1)
		c.Password, c.TLSConfig = cmp.Or(c.Password, o.password), secure(c.TLSConfig)
		return redis.NewFailoverClient(c), nil
	case o.cluster || query.Has("addr"):
		c, err := redis.ParseClusterURL(text)
		if err != nil {
			return nil, badURL(err)
		}
		c.ContextTimeoutEnabled, c.DialTimeout, c.DialerRetries = true, within(c.DialTimeout, o.timeout), cmp.Or(c.DialerRetries, 1)
		c.Password, c.TLSConfig = cmp.Or(c.Password, o.password), secure(c.TLSConfig)
		return redis.NewClusterClient(c), nil
	}
	c, err := redis.ParseURL(text)
	if err != nil {
		return nil, badURL(err)
	}
	c.ContextTimeoutEnabled, c.DialTimeout, c.DialerRetries = true, within(c.DialTimeout, o.timeout), cmp.Or(c.DialerRetries, 1)
	c.Password, c.TLSConfig = cmp.Or(c.Password, o.password), secure(c.TLSConfig)
	return redis.NewClient(c), nil
}

func isSentinelURL(text string) bool {
	_, query, _ := strings.Cut(text, "?")
	values, _ := url.ParseQuery(query)
	return values.Has("master_name")
}

func within(set, timeout time.Duration) time.Duration {
	if set > 0 {
		return min(set, timeout)
	}
	return timeout
}

// No error contains a part of the URL: in an invalid URL, any part may be the password.

const escapeIt = `in a user name or password, write special characters as %XX (@ is %40, / is %2F, % is %25), or pass the password in INFUSE_REDIS_PASSWORD`

// checkURL returns the URL with its scheme. It rejects a URL whose password would be
// parsed as a host, a path or a query.
func checkURL(text string) (string, error) {
	if text == "" {
		return "", usageErrorf("missing Redis URL: pass -redis URL, or set INFUSE_REDIS")
	}
	if !strings.Contains(text, "://") {
		text = "redis://" + text
	}
	scheme, rest, _ := strings.Cut(text, "://")
	if scheme != "redis" && scheme != "rediss" && scheme != "unix" {
		return "", usageErrorf("the URL of Redis must begin with redis://, rediss:// or unix://; %s", escapeIt)
	}
	if end := strings.IndexAny(rest, "/?#"); end >= 0 && strings.Contains(rest[end:], "@") {
		return "", usageErrorf("the URL of Redis has an @ after a /, ? or #: %s", escapeIt)
	}
	return text, nil
}

// badURL describes what is wrong with a URL.
func badURL(err error) error {
	for _, e := range []struct{ prefix, text string }{
		{"redis: invalid database number", "the database must be a number: redis://host:6379/0"},
		{"redis: invalid URL path", "only a database may follow the host: redis://host:6379/0"},
		{"redis: invalid URL scheme", "a Cluster or Sentinel needs redis:// or rediss://"},
		{"redis: invalid", "the query has an option with an invalid value"},
		{"redis: unexpected option", "the query has an unknown option"},
		{"redis: unable to parse addr", "addr in the query must be host:port"},
		{"redis: empty unix socket path", "the path of the socket is missing"},
	} {
		if strings.HasPrefix(err.Error(), e.prefix) {
			return usageErrorf("the URL of Redis is invalid: %s", e.text)
		}
	}
	return usageErrorf("the URL of Redis is invalid: %s", escapeIt)
}

// tlsConfig returns the certificates of the flags; nil if there are none.
func tlsConfig(o *options) (*tls.Config, error) {
	if o.tlsCA == "" && o.tlsCert == "" && o.tlsKey == "" {
		return nil, nil
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if o.tlsCA != "" {
		pem, err := os.ReadFile(o.tlsCA)
		if err != nil {
			return nil, usageErrorf("-tls-ca: %v", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, usageErrorf("-tls-ca: %s has no certificate in PEM form", o.tlsCA)
		}
	}
	if (o.tlsCert == "") != (o.tlsKey == "") {
		return nil, usageErrorf("-tls-cert and -tls-key belong together: pass both or neither")
	}
	if o.tlsCert != "" {
		pair, err := tls.LoadX509KeyPair(o.tlsCert, o.tlsKey)
		if err != nil {
			return nil, usageErrorf("-tls-cert, -tls-key: %v", err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

// silent drops the log lines of go-redis: the errors contain the same.
type silent struct{}

func (silent) Printf(context.Context, string, ...any) {}
