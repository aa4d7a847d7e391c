package grpcinfuse

// This file contains the names of targets.

import (
	"net/url"
	"strings"

	"google.golang.org/grpc"

	"github.com/infuse-go/infuse/internal/rpc"
)

// target returns the circuit name of a connection's target.
func (i *Interceptor) target(cc *grpc.ClientConn) string {
	return i.names.Of(cc.Target(), func() string { return nameOf(cc.CanonicalTarget()) })
}

// nameOf returns the circuit name of a target in canonical form. It omits the name server
// (the authority in dns://8.8.8.8/host).
func nameOf(target string) string {
	u, err := url.Parse(target)
	if err != nil || u.Scheme != "dns" && u.Scheme != "passthrough" {
		return target
	}
	endpoint := u.Opaque
	if endpoint == "" {
		endpoint = strings.TrimPrefix(u.Path, "/")
	}
	if name := rpc.HostName(endpoint, "443"); name != "" {
		return name
	}
	return target
}
