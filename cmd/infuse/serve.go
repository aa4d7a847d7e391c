package main

// This file contains the command serve, which serves the ops page.

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/ops"
)

// serveFlags are the flags of serve.
type serveFlags struct {
	listen     string
	title      string
	hosts      string
	origins    string
	userHeader string
	proxies    string
}

func serveCommand() *command {
	f := new(serveFlags)
	return &command{name: "serve", usage: "", summary: "serve the ops page", text: serveHelp, endless: true,
		flags: func(set *flag.FlagSet, _ *options) {
			set.StringVar(&f.listen, "listen", "127.0.0.1:8080", "")
			set.StringVar(&f.title, "title", "", "")
			set.StringVar(&f.hosts, "hosts", "", "")
			set.StringVar(&f.origins, "origins", "", "")
			set.StringVar(&f.userHeader, "user-header", "", "")
			set.StringVar(&f.proxies, "proxies", "127.0.0.0/8,::1", "")
		},
		checks: func(o *options, _ []string) error {
			_, err := f.handler(o, infuse.NewMemoryStorage(), slog.New(slog.DiscardHandler))
			return err
		},
		run: f.serve}
}

const serveHelp = `The page shows the shared circuits and updates itself. It is for a fleet whose
services do not mount the page. It is read-only unless -user-header is set. Redis must
be available when the command starts. It stops on SIGINT and SIGTERM (with exit code 0).

Anyone who can connect can read the page, and it has no TLS. Listen on the loopback
interface, which is the default, or behind a proxy that authenticates.

Flags:
  -listen ADDRESS     host:port to listen on. Default 127.0.0.1:8080
  -hosts NAMES        host names under which the page is opened, separated by
                      commas. localhost and IP addresses are always allowed.
                      Other names are rejected, to prevent DNS rebinding
  -user-header NAME   the HTTP header in which a proxy passes the name of an
                      authenticated user, who may then change circuits. The proxy
                      must remove this header from the requests of its clients
  -proxies ADDRESSES  IP addresses and networks of the proxies whose -user-header
                      is trusted, separated by commas. Default 127.0.0.0/8,::1:
                      any program on this host can then pass any name. From other
                      addresses the page is read-only
  -origins ORIGINS    origins of the page, separated by commas, such as
                      https://ops.example.com. Set it if the proxy rewrites the
                      Host header, otherwise changes are rejected
  -title TEXT         the heading. Default: the prefix

Examples:
  infuse serve
  infuse serve -hosts ops.example.com -user-header X-Forwarded-User
`

// stopTime is how long requests in progress may take after a signal.
const stopTime = 5 * time.Second

func (f *serveFlags) serve(ctx context.Context, j *job) error {
	handler, err := f.handler(j.options, j.storage, slog.New(slog.NewTextHandler(j.stderr, nil)))
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", f.listen)
	if err != nil {
		return err
	}
	server := &http.Server{
		Handler: handler, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 64 << 10,
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
	}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	access := "read-only"
	if f.userHeader != "" {
		access = "users in " + f.userHeader + " may make changes"
	}
	if _, err = fmt.Fprintf(j.stdout, "serving http://%s/ (%s)\n", listener.Addr(), access); err == nil {
		select {
		case err = <-failed:
		case <-ctx.Done():
		}
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTime)
	defer cancel()
	if server.Shutdown(stop) != nil {
		_ = server.Close()
	}
	return err
}

// handler returns the ops page, or an error if a flag is invalid.
func (f *serveFlags) handler(o *options, storage infuse.Storage, logger *slog.Logger) (http.Handler, error) {
	if _, _, err := net.SplitHostPort(f.listen); err != nil {
		return nil, usageErrorf("invalid -listen %q: want host:port", f.listen)
	}
	proxies, err := networks(f.proxies)
	if err != nil {
		return nil, err
	}
	switch {
	case f.userHeader == "":
	case strings.ContainsFunc(f.userHeader, isNoToken):
		return nil, usageErrorf("invalid -user-header %q: want the name of an HTTP header", f.userHeader)
	case len(proxies) == 0:
		return nil, usageErrorf("-user-header requires -proxies")
	}
	options := ops.Options{
		Storage: storage, Hosts: splitList(f.hosts), TrustedOrigins: splitList(f.origins), Logger: logger,
		Title: cmp.Or(f.title, "Circuits of "+cmp.Or(o.prefix, "infuse:")),
	}
	if f.userHeader != "" {
		user := func(r *http.Request) (string, bool) { return f.user(r, proxies) }
		options.Authorize = user
		options.Client = func(r *http.Request) string { name, _ := user(r); return name }
	}
	if err := options.Validate(); err != nil {
		return nil, usageErrorf("%v", err)
	}
	return ops.Handler(options), nil
}

// user returns the user that a trusted proxy passes. It rejects a request with several
// headers: the client may have sent one of them.
func (f *serveFlags) user(r *http.Request, proxies []netip.Prefix) (string, bool) {
	remote, err := netip.ParseAddrPort(r.RemoteAddr)
	names := r.Header.Values(f.userHeader)
	if err != nil || len(names) != 1 || strings.TrimSpace(names[0]) == "" {
		return "", false
	}
	for _, proxy := range proxies {
		if proxy.Contains(remote.Addr().Unmap().WithZone("")) {
			return oneLine(strings.TrimSpace(names[0])), true
		}
	}
	return "", false
}

// isNoToken reports whether r is invalid in a header name.
func isNoToken(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("!#$%&'*+-.^_`|~", r)
}

func networks(text string) (all []netip.Prefix, err error) {
	for _, item := range splitList(text) {
		prefix, err := netip.ParsePrefix(item)
		if err != nil {
			address, err := netip.ParseAddr(item)
			if err != nil {
				return nil, usageErrorf("invalid -proxies %q: want IP addresses or networks, such as 10.0.0.4,10.1.0.0/16", item)
			}
			prefix = netip.PrefixFrom(address, address.BitLen())
		}
		all = append(all, prefix)
	}
	return all, nil
}

func splitList(text string) (all []string) {
	for item := range strings.SplitSeq(text, ",") {
		if item = strings.TrimSpace(item); item != "" {
			all = append(all, item)
		}
	}
	return all
}
