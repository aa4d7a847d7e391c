package rpc

// This file contains the names of targets.

import (
	"net"
	"slices"
	"strings"
	"sync/atomic"
)

// Names caches the name of the last target.
type Names struct{ last atomic.Pointer[named] }

type named struct{ target, name string }

// Of returns the name of the target. It calls name if the target is not the last one.
func (n *Names) Of(target string, name func() string) string {
	if last := n.last.Load(); last != nil && last.target == target {
		return last.name
	}
	made := name()
	n.last.Store(&named{target, made})
	return made
}

// HostName returns one name for a host, with or without a port, however it is
// written. It leaves out the default ports.
func HostName(endpoint string, defaultPorts ...string) string {
	host, port, err := net.SplitHostPort(endpoint)
	if err != nil {
		host, port = strings.Trim(endpoint, "[]"), ""
	}
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if port == "" || slices.Contains(defaultPorts, port) {
		return host
	}
	return host + ":" + port
}
