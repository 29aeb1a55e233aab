// The two ends of a measurement: an event server shaped like The Things Stack, and a receiver that counts.
//
//	load source -frames FILE [-rate N] [-count N]   POST /api/v3/events streams, once GET /go has been asked
//	load receive [-mqtt HOST:PORT]                  POST counts events; GET /stats, GET /reset
//
// Both listen on a free port of 127.0.0.1 and print it as their first line.
package main

import (
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
)

func main() {
	if len(os.Args) < 2 {
		log.Fatal("load source | receive")
	}
	switch os.Args[1] {
	case "source":
		source(os.Args[2:])
	case "receive":
		receive(os.Args[2:])
	default:
		log.Fatal("load source | receive")
	}
}

func serve(mux *http.ServeMux) {
	listening, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(listening.Addr().(*net.TCPAddr).Port)
	log.Fatal(http.Serve(listening, mux))
}
