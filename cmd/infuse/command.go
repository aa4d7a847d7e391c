package main

// This file contains the list of commands, and the checks that all of them share.

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
	summary string // one line
	text    string // the rest of its help
	minArgs int
	maxArgs int  // -1: any number
	endless bool // runs without a timeout
	offline bool // needs no storage
	flags   func(*flag.FlagSet, *options)
	checks  func(*options, []string) error
	run     func(context.Context, *job) error
}

// commands returns the commands in the order of the help.
func commands() []*command {
	return []*command{
		{name: "list", usage: "", summary: "list the circuits that have a record, unhealthy ones first", text: listHelp, run: list},
		{name: "show", usage: "NAME", summary: "show a circuit and its history", text: showHelp, minArgs: 1, maxArgs: 1, run: show},
		{name: "watch", usage: "[NAME…]", summary: "print transitions and manual changes as they happen", text: watchHelp, maxArgs: -1, endless: true, run: watch,
			flags: func(f *flag.FlagSet, o *options) {
				f.DurationVar(&o.interval, "interval", 2*time.Second, "")
			},
			checks: func(o *options, _ []string) error {
				if o.interval < 10*time.Millisecond {
					return usageErrorf("-interval is %v: must be at least 10ms", o.interval)
				}
				return nil
			}},
		{name: "override", usage: "NAME open|closed -reason TEXT -until WHEN", summary: "force a circuit open or closed", text: overrideHelp, minArgs: 2, maxArgs: 2, run: override,
			flags: func(f *flag.FlagSet, o *options) {
				f.StringVar(&o.reason, "reason", "", "")
				f.StringVar(&o.until, "until", "", "")
				byFlag(f, o)
				forceFlag(f, o)
			},
			checks: checkOverride},
		{name: "remove-override", usage: "NAME", summary: "remove an override", text: removeOverrideHelp, minArgs: 1, maxArgs: 1, run: removeOverride, flags: byFlag},
		{name: "set-state", usage: "NAME closed|open|half-open", summary: "set the state once; calls decide what comes next", text: setStateHelp, minArgs: 2, maxArgs: 2, run: setState,
			flags: func(f *flag.FlagSet, o *options) {
				f.DurationVar(&o.openFor, "for", time.Minute, "")
				byFlag(f, o)
				forceFlag(f, o)
			},
			checks: checkSetState},
		{name: "plan", usage: "[flags]", summary: "estimate false openings, outage cost and Redis load of settings", text: planHelp, offline: true, run: plan, flags: planFlags, checks: checkPlan},
		serveCommand(),
		{name: "version", usage: "", summary: "print the version of infuse", text: versionHelp, offline: true, run: version},
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

func byFlag(f *flag.FlagSet, o *options) { f.StringVar(&o.by, "by", defaultAuthor(), "") }

// defaultAuthor returns user@host.
func defaultAuthor() string {
	name := os.Getenv("USER")
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	host, _ := os.Hostname()
	return cut(plain(name), 80) + "@" + cut(plain(host), 80)
}

// check returns what is wrong with the arguments. It does no I/O.
func (c *command) check(o *options, args []string) error {
	o.prefix = cmp.Or(o.prefix, defaultPrefix)
	switch {
	case len(args) < c.minArgs || c.maxArgs >= 0 && len(args) > c.maxArgs:
		return usageErrorf("usage: %s", strings.TrimSpace("infuse "+c.name+" "+c.usage))
	case o.timeout < time.Millisecond:
		return usageErrorf("-timeout is %v: must be at least 1ms", o.timeout)
	case len(o.by) > 200:
		return usageErrorf("-by has %d bytes: at most 200 are allowed", len(o.by))
	}
	names := args
	if c.maxArgs == 2 {
		names = args[:1]
	}
	for i, name := range names {
		names[i] = unquoted(name)
		if err := infuse.CheckName(names[i]); err != nil {
			return usageErrorf("%s", strings.TrimPrefix(err.Error(), "infuse: "))
		}
	}
	if c.checks != nil {
		return c.checks(o, args)
	}
	return nil
}

func (c *command) help() string {
	return fmt.Sprintf("infuse %s: %s\n\nUsage: infuse [common flags] %s\n\n%s", c.name, c.summary, strings.TrimSpace(c.name+" "+c.usage), c.text)
}
