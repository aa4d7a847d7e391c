package main

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

// Names, causes, reasons and authors come from anywhere. Nothing of them
// reaches the terminal but what can be printed.

// quoted returns a name as it can be read and typed: as it is, or as a Go string
// where it has spaces, quotes or what cannot be printed.
func quoted(name string) string {
	odd := func(r rune) bool { return !unicode.IsPrint(r) || unicode.IsSpace(r) || r == '"' }
	if name == "" || !utf8.ValidString(name) || strings.ContainsFunc(name, odd) {
		return strconv.Quote(name)
	}
	return name
}

// unquoted returns the name that quoted has quoted. Any other stays as it is.
func unquoted(arg string) string {
	if strings.HasPrefix(arg, `"`) {
		if name, err := strconv.Unquote(arg); err == nil {
			return name
		}
	}
	return arg
}

// plain returns a text of several words as it can be read: as it is, or as a Go
// string where it has what cannot be printed.
func plain(text string) string {
	odd := func(r rune) bool { return !unicode.IsPrint(r) }
	if !utf8.ValidString(text) || strings.ContainsFunc(text, odd) {
		return strconv.Quote(text)
	}
	return text
}

// oneLine returns a text that a record accepts, no longer than the original.
func oneLine(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == utf8.RuneError {
			return '?'
		}
		return r
	}, text)
}

// cut returns the first characters of a text, at most so many.
func cut(text string, most int) string {
	n := 0
	for i := range text {
		if n++; n == most && utf8.RuneCountInString(text[i:]) > 1 {
			return text[:i] + "…"
		}
	}
	return text
}

// brief rounds a duration to what one wants to know of it: two units at most.
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

// clock returns the time of day, and the date where it is another day's.
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

// writeJSON writes a value in a line, or indented. Characters that cannot be
// printed are escaped, which JSON itself asks for of some only.
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
