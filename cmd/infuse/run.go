package main

// This file contains the program: it parses arguments, runs a command, and returns an
// exit code.

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/infuse-go/infuse"
)

// The exit codes, which the help describes.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
)

// store is a storage with the optional methods that the commands call.
type store interface {
	infuse.Storage
	infuse.Historian
	infuse.Lister
}

// opener opens the storage of the options. It passes remarks for the user to notice.
type opener func(ctx context.Context, o *options, notice func(string)) (s store, closeStore func(), err error)

// program is one run of infuse. Tests replace open.
type program struct {
	stdout, stderr io.Writer
	open           opener
}

// options are the values of all flags: the common ones, and those of each command.
type options struct {
	redis    string
	password string // from the environment only: other users can see arguments
	cluster  bool
	tlsCA    string
	tlsCert  string
	tlsKey   string
	prefix   string
	json     bool
	timeout  time.Duration

	reason   string
	until    string
	by       string
	force    bool
	openFor  time.Duration
	interval time.Duration
	plan     planInput
}

// job is one command with its arguments and its storage.
type job struct {
	*options
	args           []string
	storage        store
	stdout, stderr io.Writer
}

// usageError is a mistake in the arguments.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

func usageErrorf(format string, args ...any) error { return &usageError{fmt.Sprintf(format, args...)} }

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	return program{stdout, stderr, openRedis}.run(ctx, args)
}

func (p program) run(ctx context.Context, args []string) int {
	err := p.do(ctx, args)
	var usage *usageError
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, &usage):
		fmt.Fprintf(p.stderr, "infuse: %s\n", plain(err.Error()))
		return exitUsage
	}
	fmt.Fprintf(p.stderr, "infuse: %s\n", textOf(err))
	return exitFailed
}

// notice prints a line to stderr.
func (p program) notice(text string) { fmt.Fprintf(p.stderr, "infuse: %s\n", plain(text)) }

func (j *job) notice(text string) { program{stderr: j.stderr}.notice(text) }

// textOf returns an error's text without the prefix infuse, which every line has.
func textOf(err error) string {
	text := strings.TrimPrefix(err.Error(), "infuse: ")
	if strings.Contains(text, "WRONGPASS") || strings.Contains(text, "NOAUTH") {
		text = strings.TrimSuffix(text, ".") + "; check the user and password in the URL of Redis, or INFUSE_REDIS_PASSWORD"
	}
	return plain(strings.ReplaceAll(text, ": infuse: ", ": "))
}

func (p program) do(ctx context.Context, args []string) error {
	opts := &options{
		redis: os.Getenv("INFUSE_REDIS"), password: os.Getenv("INFUSE_REDIS_PASSWORD"),
		prefix: cmp.Or(os.Getenv("INFUSE_PREFIX"), defaultPrefix),
	}
	before := flags(opts, nil)
	if err := before.Parse(args); err != nil {
		return p.helpOr(err, nil)
	}
	if before.NArg() == 0 {
		return usageErrorf("missing command; see infuse -h")
	}
	name, args := before.Arg(0), before.Args()[1:]
	if name == "help" {
		return p.help(args)
	}
	c := commandOf(name)
	if c == nil {
		return usageErrorf("unknown command %s; see infuse -h", shownWord(name))
	}
	rest, err := parseMixed(flags(opts, c), args)
	if err != nil {
		return p.helpOr(err, c)
	}
	return p.execute(ctx, c, opts, rest)
}

func (p program) execute(ctx context.Context, c *command, opts *options, args []string) error {
	if err := c.check(opts, args); err != nil {
		return err
	}
	j := &job{options: opts, args: args, stdout: p.stdout, stderr: p.stderr}
	if c.offline {
		return c.run(ctx, j)
	}
	bounded, cancel := context.WithTimeout(ctx, opts.timeout)
	defer cancel()
	timedOut := func(err error) error {
		if err != nil && bounded.Err() == context.DeadlineExceeded {
			return fmt.Errorf("timed out after %v (-timeout): %w", opts.timeout, err)
		}
		return err
	}
	storage, closeStore, err := p.open(bounded, opts, p.notice)
	if err != nil {
		return timedOut(err)
	}
	defer closeStore()
	j.storage = storage
	if c.endless {
		return c.run(ctx, j)
	}
	return timedOut(c.run(bounded, j))
}

// shownWord quotes an argument for an error text. It hides an argument that may be a
// URL with a password.
func shownWord(arg string) string {
	if len(arg) > 40 || strings.ContainsAny(arg, "@/?#") || strings.Contains(arg, "://") {
		return "(hidden)"
	}
	return strconv.Quote(arg)
}

var (
	invalidValue = regexp.MustCompile(`(?s)^invalid (?:boolean )?value ".*" for (?:flag )?-([a-z-]+): `)
	unknownFlag  = regexp.MustCompile(`^flag provided but not defined: (-[a-z-]{1,20})$`)
)

// flagError returns the text of an error of the flag package without the value, which
// may be a misplaced password.
func flagError(err error) string {
	if m := invalidValue.FindStringSubmatch(err.Error()); m != nil {
		return "invalid value for -" + m[1]
	}
	if m := unknownFlag.FindStringSubmatch(err.Error()); m != nil {
		return "unknown flag " + m[1]
	}
	if name, ok := strings.CutPrefix(err.Error(), "flag needs an argument: "); ok {
		return "missing value for " + name
	}
	return "unknown or invalid flag"
}

// flags returns the common flags and, with a command, its flags.
func flags(o *options, c *command) *flag.FlagSet {
	f := flag.NewFlagSet("infuse", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.StringVar(&o.redis, "redis", o.redis, "")
	f.BoolVar(&o.cluster, "cluster", o.cluster, "")
	f.StringVar(&o.tlsCA, "tls-ca", o.tlsCA, "")
	f.StringVar(&o.tlsCert, "tls-cert", o.tlsCert, "")
	f.StringVar(&o.tlsKey, "tls-key", o.tlsKey, "")
	f.StringVar(&o.prefix, "prefix", o.prefix, "")
	f.BoolVar(&o.json, "json", o.json, "")
	if o.timeout == 0 {
		o.timeout = 5 * time.Second
	}
	f.DurationVar(&o.timeout, "timeout", o.timeout, "")
	if c != nil && c.flags != nil {
		c.flags(f, o)
	}
	return f
}

// parseMixed parses flags before, between and after the arguments.
func parseMixed(f *flag.FlagSet, args []string) (rest []string, err error) {
	for {
		if err := f.Parse(args); err != nil {
			return nil, err
		}
		left := f.Args()
		if parsed := len(args) - len(left); parsed > 0 && args[parsed-1] == "--" {
			return append(rest, left...), nil
		}
		if len(left) == 0 {
			return rest, nil
		}
		rest, args = append(rest, left[0]), left[1:]
	}
}

// helpOr prints the help if err is flag.ErrHelp. Otherwise it returns a usage error.
func (p program) helpOr(err error, c *command) error {
	if !errors.Is(err, flag.ErrHelp) {
		return usageErrorf("%s; see infuse -h", flagError(err))
	}
	if c == nil {
		return p.help(nil)
	}
	return p.help([]string{c.name})
}

func (p program) help(topics []string) error {
	if len(topics) == 0 {
		_, err := io.WriteString(p.stdout, overview())
		return err
	}
	c := commandOf(topics[0])
	if c == nil {
		return usageErrorf("unknown command %s; see infuse -h", shownWord(topics[0]))
	}
	_, err := io.WriteString(p.stdout, c.help())
	return err
}
