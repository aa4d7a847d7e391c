package main

import (
	"context"
	"errors"
	"net/url"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/infuse-go/infuse"
)

// openRedis returns the storage at the URL of the options. It does no I/O.
func openRedis(o *options) (store, func(), error) {
	client, err := connect(o.redis, o.cluster, o.timeout)
	if err != nil {
		return nil, nil, err
	}
	storage := infuse.NewRedisStorage(client, infuse.RedisOptions{Prefix: o.prefix})
	return storage, func() {
		_ = storage.Close()
		_ = client.Close()
	}, nil
}

// connect returns a client for the URL: of Sentinels where it has a
// master_name, of a Cluster where it has an addr, else of a single server.
func connect(text string, cluster bool, timeout time.Duration) (redis.UniversalClient, error) {
	if text == "" {
		return nil, misused("no Redis is given: -redis URL, or INFUSE_REDIS in the environment")
	}
	if !strings.Contains(text, "://") {
		text = "redis://" + text
	}
	u, err := url.Parse(text)
	if err != nil {
		return nil, badURL(err)
	}
	switch query := u.Query(); {
	case query.Has("master_name"):
		o, err := redis.ParseFailoverURL(text)
		if err != nil {
			return nil, badURL(err)
		}
		o.ContextTimeoutEnabled, o.DialTimeout = true, within(o.DialTimeout, timeout)
		return redis.NewFailoverClient(o), nil
	case cluster || query.Has("addr"):
		o, err := redis.ParseClusterURL(text)
		if err != nil {
			return nil, badURL(err)
		}
		o.ContextTimeoutEnabled, o.DialTimeout = true, within(o.DialTimeout, timeout)
		return redis.NewClusterClient(o), nil
	}
	o, err := redis.ParseURL(text)
	if err != nil {
		return nil, badURL(err)
	}
	o.ContextTimeoutEnabled, o.DialTimeout = true, within(o.DialTimeout, timeout)
	return redis.NewClient(o), nil
}

func within(set, timeout time.Duration) time.Duration {
	if set > 0 {
		return min(set, timeout)
	}
	return timeout
}

// badURL leaves out the URL itself, which may have a password.
func badURL(err error) error {
	var parsing *url.Error
	if errors.As(err, &parsing) {
		err = parsing.Err
	}
	return misused("the URL of Redis: %v", err)
}

// silent drops go-redis's own log lines: what matters is in the errors.
type silent struct{}

func (silent) Printf(context.Context, string, ...any) {}
