// Miniredis serves a miniredis on a free loopback port, prints its address, and ends with
// its standard input. Package redistest runs it. It is a separate module, so that users of
// Infuse do not download miniredis.
package main

import (
	"fmt"
	"io"
	"log"
	"os"
	"strconv"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/alicebob/miniredis/v2/server"
)

func main() {
	mini := miniredis.NewMiniRedis()
	if err := mini.Start(); err != nil {
		log.Fatal(err)
	}
	defer mini.Close()
	for name, run := range map[string]func(nanoseconds int64){
		"TEST.SETTIME":     func(ns int64) { mini.SetTime(time.Unix(0, ns)) },
		"TEST.FASTFORWARD": func(ns int64) { mini.FastForward(time.Duration(ns)) },
	} {
		if err := mini.Server().Register(name, command(run)); err != nil {
			log.Fatal(err)
		}
	}
	fmt.Println(mini.Addr())
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// command returns a command whose only argument is a number of nanoseconds.
func command(run func(nanoseconds int64)) server.Cmd {
	return func(peer *server.Peer, _ string, args []string) {
		if len(args) != 1 {
			peer.WriteError("ERR want one argument")
			return
		}
		ns, err := strconv.ParseInt(args[0], 10, 64)
		if err != nil {
			peer.WriteError("ERR " + err.Error())
			return
		}
		run(ns)
		peer.WriteOK()
	}
}
