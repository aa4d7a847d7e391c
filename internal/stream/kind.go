// Package stream recognizes streaming responses: event streams, and the frames and
// statuses of gRPC, gRPC-Web and Connect.
package stream

import (
	"mime"
	"net/http"
	"strings"
)

// Kind is the kind of stream that a response without a length is.
type Kind uint8

const (
	None   Kind = iota
	Events      // independent events
	Frames      // the last frame or the trailer may report a failure
)

// KindOf returns the kind of a response, according to its type and the request.
func KindOf(r *http.Request, response *http.Response) Kind {
	if t := response.Header["Content-Type"]; len(t) > 0 {
		switch media := mediaType(t[0]); media {
		case "application/json": // the most frequent type, checked first
		case "text/event-stream", "application/x-ndjson", "application/json-seq", "application/jsonl", "application/stream+json",
			"application/vnd.amazon.eventstream", "multipart/x-mixed-replace", "multipart/mixed":
			return Events
		default:
			if strings.HasPrefix(media, "application/grpc") || strings.HasPrefix(media, connectPrefix) {
				return Frames
			}
		}
		if strings.Contains(strings.ToLower(t[0]), "stream=") {
			if _, parameters, err := mime.ParseMediaType(t[0]); err == nil && parameters["stream"] == "watch" {
				return Events
			}
		}
	}
	if isWatch(r.URL.RawQuery) {
		return Events
	}
	return None
}

// mediaType returns the media type of a Content-Type without its parameters, in
// lower case (RFC 9110, 8.3.1); "" if it is invalid. A type that is in this form
// already is not parsed.
func mediaType(contentType string) string {
	media, _, _ := strings.Cut(contentType, ";")
	if media == strings.ToLower(strings.TrimSpace(media)) {
		return media
	}
	media, _, _ = mime.ParseMediaType(media)
	return media
}

// isWatch reports whether a query requests a Kubernetes watch, whose response has the same
// type as others.
func isWatch(query string) bool {
	for query != "" {
		var one string
		if one, query, _ = strings.Cut(query, "&"); one == "watch=true" || one == "watch=1" {
			return true
		}
	}
	return false
}
