// Package redact removes possible secrets of URLs from texts: the user information, and
// everything after the first ? or #.
//
// The end of a URL cannot be determined: an unescaped query may contain quotes, spaces and
// colons, like the text around it. So a text is truncated at its first query.
package redact

import (
	"errors"
	"strings"
)

const (
	scheme = "://"
	more   = "…" // replaces the removed end
)

// Text returns the text without the user information of its URLs, truncated at the first ?
// or # after a URL's scheme. A text without a URL is returned unchanged.
func Text(text string) string {
	redacted, _ := redact(text)
	return redacted
}

// Error is Text for the text of err. If the text of the wrapped error is its end, Error
// keeps that end after a query.
func Error(err error) string {
	text := err.Error()
	redacted, cut := redact(text)
	if !cut {
		return redacted
	}
	var b strings.Builder
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			break
		}
		tail := inner.Error()
		head, ends := strings.CutSuffix(text, tail)
		if !ends {
			break
		}
		redacted, cut := redact(head)
		b.WriteString(redacted)
		if cut {
			b.WriteString(separator(head))
		}
		text, err = tail, inner
	}
	b.WriteString(Text(text))
	return b.String()
}

// separator returns the separator between a URL and the text of a wrapped error.
func separator(head string) string {
	for _, s := range []string{`": `, `': `, ": "} {
		if strings.HasSuffix(head, s) {
			return s
		}
	}
	return " "
}

// redact returns the redacted text, and whether it has removed the end.
func redact(text string) (redacted string, cut bool) {
	i := strings.Index(text, scheme)
	if i < 0 {
		return text, false
	}
	var b strings.Builder
	for i >= 0 {
		b.WriteString(text[:i+len(scheme)])
		text = text[i+len(scheme):]
		end := strings.IndexAny(text, "/?#")
		if end < 0 {
			end = len(text)
		} else if end > 0 && strings.HasPrefix(text[end-1:], scheme) { // part of the next URL
			end--
		}
		authority := text[strings.LastIndexByte(text[:end], '@')+1 : end]
		text = text[end:]
		if !startsWithHost(authority) {
			b.WriteString(more)
			return b.String(), true
		}
		b.WriteString(authority)
		i = strings.Index(text, scheme)
		if query := strings.IndexAny(text, "?#"); query >= 0 && (i < 0 || query < i) {
			b.WriteString(text[:query+1])
			b.WriteString(more)
			return b.String(), true
		}
	}
	b.WriteString(text)
	return b.String(), false
}

// startsWithHost reports whether a text starts with a host, with or without a port.
// Otherwise it may be the start of a password that contains / or #.
func startsWithHost(s string) bool {
	if rest, bracketed := strings.CutPrefix(s, "["); bracketed {
		_, after, closed := strings.Cut(rest, "]")
		return closed && startsWithPort(after)
	}
	i := 0
	for i < len(s) && isHost(s[i]) {
		i++
	}
	return startsWithPort(s[i:])
}

func isHost(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c >= 0x80 || strings.IndexByte("-._%*", c) >= 0
}

// startsWithPort reports whether the text after a host starts with a port, or with a
// character that cannot be part of user information.
func startsWithPort(s string) bool {
	if s == "" || s[0] != ':' {
		return s == "" || ends(s[0])
	}
	i := 1
	for i < len(s) && '0' <= s[i] && s[i] <= '9' {
		i++
	}
	if i < len(s) && s[i] == ':' { // part of the text around the URL
		i++
	}
	return i == len(s) || ends(s[i])
}

// ends reports whether c may follow a host in a text, but is not part of a host.
func ends(c byte) bool {
	return c <= ' ' || c == 0x7f || strings.IndexByte("\"'`<>()[]{},;|\\", c) >= 0
}
