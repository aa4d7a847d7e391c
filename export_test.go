package infuse

// What only tests outside the package may use.
var (
	EncodeRecord = encodeRecord
	DecodeRecord = decodeRecord
	DecodeReply  = decodeReply
)
