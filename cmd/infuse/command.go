package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"os"
	"os/user"
	"strings"
	"time"

	"github.com/infuse-go/infuse"
)

// command is a command of infuse.
type command struct {
	name    string
	usage   string // its arguments
	does    string // in a line
	text    string // of its help
	least   int    // arguments
	most    int    // -1: any number
	endless bool   // it has no timeout
	offline bool   // it needs no storage
	flags   func(*flag.FlagSet, *options)
	checks  func(*options, []string) error
	run     func(context.Context, *job) error
}

// commands are in the order of the help. A func, because they refer to the help.
func commands() []*command {
	return []*command{
		{name: "list", usage: "", does: "list the circuits that have a record, unhealthy ones first", text: listHelp, run: list},
		{name: "show", usage: "NAME", does: "show a circuit and its history", text: showHelp, least: 1, most: 1, run: show},
		{name: "watch", usage: "[NAME…]", does: "print transitions and manual changes as they happen", text: watchHelp, most: -1, endless: true, run: watch,
			flags: func(f *flag.FlagSet, o *options) {
				f.DurationVar(&o.interval, "interval", 2*time.Second, "")
			},
			checks: func(o *options, _ []string) error {
				if o.interval < 10*time.Millisecond {
					return misused("-interval is %v: must be at least 10ms", o.interval)
				}
				return nil
			}},
		{name: "override", usage: "NAME open|closed -reason TEXT -until WHEN", does: "force a circuit open or closed", text: overrideHelp, least: 2, most: 2, run: override,
			flags: func(f *flag.FlagSet, o *options) {
				f.StringVar(&o.reason, "reason", "", "")
				f.StringVar(&o.until, "until", "", "")
				byFlag(f, o)
				forceFlag(f, o)
			},
			checks: checkOverride},
		{name: "remove-override", usage: "NAME", does: "remove an override", text: removeOverrideHelp, least: 1, most: 1, run: removeOverride, flags: byFlag},
		{name: "set-state", usage: "NAME closed|open|half-open", does: "set the state once; calls decide what comes next", text: setStateHelp, least: 2, most: 2, run: setState,
			flags: func(f *flag.FlagSet, o *options) {
				f.DurationVar(&o.openFor, "for", time.Minute, "")
				byFlag(f, o)
				forceFlag(f, o)
			},
			checks: checkSetState},
		{name: "plan", usage: "[flags]", does: "estimate false openings, outage cost and Redis load of settings", text: planHelp, offline: true, run: plan, flags: planFlags, checks: checkPlan},
	}
}

func commandOf(name string) *command {
	for _, c := range commands() {
		if c.name == name {
			return c
		}
	}
	return nil
}

func forceFlag(f *flag.FlagSet, o *options) { f.BoolVar(&o.force, "force", false, "") }

func byFlag(f *flag.FlagSet, o *options) { f.StringVar(&o.by, "by", somebody(), "") }

// somebody returns user@host, if they are known.
func somebody() string {
	name := os.Getenv("USER")
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	host, _ := os.Hostname()
	return cut(plain(name), 80) + "@" + cut(plain(host), 80)
}

// check returns what is wrong with the arguments, before any connection is made.
func (c *command) check(o *options, args []string) error {
	o.prefix = cmp.Or(o.prefix, defaultPrefix)
	switch {
	case len(args) < c.least || c.most >= 0 && len(args) > c.most:
		return misused("usage: %s", strings.TrimSpace("infuse "+c.name+" "+c.usage))
	case o.timeout < time.Millisecond:
		return misused("-timeout is %v: must be at least 1ms", o.timeout)
	case len(o.by) > 200:
		return misused("-by has %d bytes: at most 200 are allowed", len(o.by))
	}
	names := args
	if c.most == 2 {
		names = args[:1]
	}
	for i, name := range names {
		names[i] = unquoted(name)
		if err := infuse.CheckName(names[i]); err != nil {
			return misused("%s", strings.TrimPrefix(err.Error(), "infuse: "))
		}
	}
	if c.checks != nil {
		return c.checks(o, args)
	}
	return nil
}

func (c *command) help() string {
	return fmt.Sprintf("infuse %s: %s\n\nUsage: infuse [common flags] %s\n\n%s", c.name, c.does, strings.TrimSpace(c.name+" "+c.usage), c.text)
}
