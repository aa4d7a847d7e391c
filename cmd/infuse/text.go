package main

// This file contains the texts that reach the terminal. Names, causes, reasons and
// authors are untrusted: only printable characters are written.

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// quoted returns a name, as a Go string if it has spaces, quotes or unprintable
// characters.
func quoted(name string) string {
	odd := func(r rune) bool { return !unicode.IsPrint(r) || unicode.IsSpace(r) || r == '"' }
	if name == "" || !utf8.ValidString(name) || strings.ContainsFunc(name, odd) {
		return strconv.Quote(name)
	}
	return name
}

// unquoted reverses quoted.
func unquoted(arg string) string {
	if strings.HasPrefix(arg, `"`) {
		if name, err := strconv.Unquote(arg); err == nil {
			return name
		}
	}
	return arg
}

// plain returns a text, as a Go string if it has unprintable characters.
func plain(text string) string {
	odd := func(r rune) bool { return !unicode.IsPrint(r) }
	if !utf8.ValidString(text) || strings.ContainsFunc(text, odd) {
		return strconv.Quote(text)
	}
	return text
}

// oneLine replaces characters that a record rejects. The text gets no longer.
func oneLine(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == utf8.RuneError {
			return '?'
		}
		return r
	}, text)
}

// cut truncates a text to a number of characters.
func cut(text string, most int) string {
	n := 0
	for i := range text {
		if n++; n == most && utf8.RuneCountInString(text[i:]) > 1 {
			return text[:i] + "…"
		}
	}
	return text
}

// brief rounds a duration to two units.
func brief(d time.Duration) string {
	if d < 10*time.Second-50*time.Millisecond {
		return d.Round(100 * time.Millisecond).String()
	}
	if d = d.Round(time.Second); d < time.Hour {
		return twoUnits(d, time.Minute, "m", time.Second, "s")
	}
	if d = d.Round(time.Minute); d < 48*time.Hour {
		return twoUnits(d, time.Hour, "h", time.Minute, "m")
	}
	return twoUnits(d, 24*time.Hour, "d", time.Hour, "h")
}

func twoUnits(d, large time.Duration, largeName string, small time.Duration, smallName string) string {
	whole, rest := d/large, d%large/small
	switch {
	case rest == 0:
		return fmt.Sprintf("%d%s", whole, largeName)
	case whole == 0:
		return fmt.Sprintf("%d%s", rest, smallName)
	}
	return fmt.Sprintf("%d%s%d%s", whole, largeName, rest, smallName)
}

// clock returns the time of day, with the date if that is not today.
func clock(t, now time.Time) string {
	t, now = t.Local(), now.Local()
	if t.Format(time.DateOnly) == now.Format(time.DateOnly) {
		return t.Format(time.TimeOnly)
	}
	return t.Format(time.DateTime)
}

func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

// writeJSON writes a value on one line, or indented. It escapes all unprintable
// characters; JSON itself requires that only for some.
func writeJSON(w io.Writer, value any, indent string) error {
	text, err := json.MarshalIndent(value, "", indent)
	if indent == "" {
		text, err = json.Marshal(value)
	}
	if err != nil {
		return err
	}
	_, err = io.WriteString(w, escaped(string(text))+"\n")
	return err
}

func escaped(text string) string {
	var b strings.Builder
	for _, r := range text {
		switch {
		case unicode.IsPrint(r) || r == '\n':
			b.WriteRune(r)
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			fmt.Fprintf(&b, `\u%04x\u%04x`, high, low)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.String()
}
