package stream

// This file contains the gRPC status of a response.

import (
	"net/http"
	"strconv"
)

// Status is a gRPC code. As an error, it is not OK.
type Status int

// The gRPC codes that the classification uses.
const (
	OK                Status = 0
	Canceled          Status = 1
	unknown           Status = 2
	DeadlineExceeded  Status = 4
	ResourceExhausted Status = 8
	Internal          Status = 13
	Unavailable       Status = 14
	DataLoss          Status = 15
)

// names are the names in Connect, in the order of the codes.
var names = []string{
	"ok", "canceled", "unknown", "invalid_argument", "deadline_exceeded", "not_found", "already_exists",
	"permission_denied", "resource_exhausted", "failed_precondition", "aborted", "out_of_range", "unimplemented",
	"internal", "unavailable", "data_loss", "unauthenticated",
}

func (s Status) Error() string {
	text := "grpc-status " + strconv.Itoa(int(s))
	if s >= 0 && int(s) < len(names) {
		text += " (" + names[s] + ")"
	}
	return text
}

const statusHeader = "Grpc-Status"

// StatusOf returns the status of a response: from its trailer or, if it has no body,
// from its headers. ok is false if it has none.
func StatusOf(response *http.Response) (s Status, ok bool) {
	for _, h := range []http.Header{response.Trailer, response.Header} {
		if values := h[statusHeader]; len(values) > 0 {
			n, err := strconv.Atoi(values[0])
			return Status(n), err == nil
		}
	}
	return 0, false
}
