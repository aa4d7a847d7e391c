package grpcinfuse

import (
	"net"
	"net/url"
	"strings"

	"google.golang.org/grpc"
)

// target returns the name of a connection's target.
func (i *Interceptor) target(cc *grpc.ClientConn) string {
	target := cc.Target()
	if last := i.last.Load(); last != nil && last.target == target {
		return last.name
	}
	name := nameOf(cc.CanonicalTarget())
	i.last.Store(&targetName{target, name})
	return name
}

// nameOf returns the name of a target in its canonical form. Who resolves a name
// (the authority in dns://8.8.8.8/host) is no part of it.
func nameOf(target string) string {
	u, err := url.Parse(target)
	if err != nil || u.Scheme != "dns" && u.Scheme != "passthrough" {
		return target
	}
	endpoint := u.Opaque
	if endpoint == "" {
		endpoint = strings.TrimPrefix(u.Path, "/")
	}
	if name := hostName(endpoint); name != "" {
		return name
	}
	return target
}

// hostName gives a host with a port or without one name, however it is written.
func hostName(endpoint string) string {
	host, port, err := net.SplitHostPort(endpoint)
	if err != nil {
		host, port = strings.Trim(endpoint, "[]"), ""
	}
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if port == "" || port == "443" {
		return host
	}
	return host + ":" + port
}
