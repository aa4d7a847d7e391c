package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/infuse-go/infuse"
)

// The exit codes.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
)

// store is what the commands need of a storage.
type store interface {
	infuse.Storage
	infuse.Historian
	infuse.Lister
}

// program is a run of the command. Tests give it another store.
type program struct {
	stdout, stderr io.Writer
	open           func(*options) (s store, closeStore func(), err error)
}

// options are the values of all flags. A command uses its own and the common ones.
type options struct {
	redis   string
	cluster bool
	prefix  string
	json    bool
	timeout time.Duration

	reason   string
	until    string
	by       string
	openFor  time.Duration
	interval time.Duration
}

// job is a command that is to be carried out.
type job struct {
	*options
	args           []string
	storage        store
	stdout, stderr io.Writer
}

// usageError is a mistake in the arguments.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

func misused(format string, args ...any) error { return &usageError{fmt.Sprintf(format, args...)} }

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
	fmt.Fprintf(p.stderr, "infuse: %s\n", saying(err))
	return exitFailed
}

// saying returns what an error says, without the name that every line begins with.
func saying(err error) string { return plain(strings.ReplaceAll(err.Error(), "infuse: ", "")) }

func (p program) do(ctx context.Context, args []string) error {
	opts := &options{redis: os.Getenv("INFUSE_REDIS")}
	before := flags(opts, nil)
	if err := before.Parse(args); err != nil {
		return p.helpOr(err, nil)
	}
	if before.NArg() == 0 {
		return misused("no command is given; infuse -h tells which there are")
	}
	name, args := before.Arg(0), before.Args()[1:]
	if name == "help" {
		return p.help(args)
	}
	c := commandOf(name)
	if c == nil {
		return misused("%q is not a command; infuse -h tells which there are", name)
	}
	rest, err := parseMixed(flags(opts, c), args)
	if err != nil {
		return p.helpOr(err, c)
	}
	return p.carryOut(ctx, c, opts, rest)
}

func (p program) carryOut(ctx context.Context, c *command, opts *options, args []string) error {
	if err := c.check(opts, args); err != nil {
		return err
	}
	storage, closeStore, err := p.open(opts)
	if err != nil {
		return err
	}
	defer closeStore()
	j := &job{options: opts, args: args, storage: storage, stdout: p.stdout, stderr: p.stderr}
	if c.endless {
		return c.run(ctx, j)
	}
	ctx, cancel := context.WithTimeout(ctx, opts.timeout)
	defer cancel()
	if err := c.run(ctx, j); err != nil {
		if ctx.Err() == context.DeadlineExceeded {
			return fmt.Errorf("not done within %v (-timeout): %w", opts.timeout, err)
		}
		return err
	}
	return nil
}

// flags returns the common flags, which may stand before the command and after
// it, and those of the command.
func flags(o *options, c *command) *flag.FlagSet {
	f := flag.NewFlagSet("infuse", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.StringVar(&o.redis, "redis", o.redis, "")
	f.BoolVar(&o.cluster, "cluster", o.cluster, "")
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

// parseMixed parses flags that stand before, between and after the arguments.
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

// helpOr prints the help, if that was asked for, or returns what was misused.
func (p program) helpOr(err error, c *command) error {
	if !errors.Is(err, flag.ErrHelp) {
		return misused("%v; infuse -h tells what is allowed", err)
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
		return misused("there is no help on %q; infuse -h tells which commands there are", topics[0])
	}
	_, err := io.WriteString(p.stdout, c.help())
	return err
}
