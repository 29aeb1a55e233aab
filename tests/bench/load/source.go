package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"net/http"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

const rfc3339 = "2006-01-02T15:04:05.000000000Z"

// A frame is a recorded line in three pieces, between which a new time and a new id are written.
type frame struct{ head, middle, tail []byte }

func frames(path string) []frame {
	content, err := os.ReadFile(path)
	if err != nil {
		log.Fatal(err)
	}
	var found []frame
	for _, line := range bytes.Split(content, []byte("\n")) {
		var read struct {
			Result struct {
				Name     string `json:"name"`
				Time     string `json:"time"`
				UniqueID string `json:"unique_id"`
			} `json:"result"`
		}
		if json.Unmarshal(line, &read) != nil || read.Result.UniqueID == "" || read.Result.Name == "events.stream.start" {
			continue
		}
		time := []byte(`"time":"` + read.Result.Time + `"`)
		id := []byte(`"unique_id":"` + read.Result.UniqueID + `"`)
		head, rest, timed := bytes.Cut(line, time)
		middle, tail, named := bytes.Cut(rest, id)
		if timed && named {
			found = append(found, frame{head, middle, tail})
		}
	}
	if len(found) == 0 {
		log.Fatal("no frames")
	}
	return found
}

// source writes nanoseconds since 1970 into each id, from which the receiver takes the age of an event.
func source(arguments []string) {
	flags := flag.NewFlagSet("source", flag.ExitOnError)
	path := flags.String("frames", "", "recorded lines")
	rate := flags.Float64("rate", 0, "events a second; 0: as fast as they are taken")
	count := flags.Int("count", 0, "events in all; 0: no end")
	_ = flags.Parse(arguments)
	recorded := frames(*path)
	gate := make(chan struct{})
	var once sync.Once
	var sending sync.Mutex // of several streams one has the events; if it ends, the next goes on
	var streams atomic.Int64
	sent := 0
	mux := http.NewServeMux()
	mux.HandleFunc("/go", func(w http.ResponseWriter, _ *http.Request) { once.Do(func() { close(gate) }) })
	mux.HandleFunc("/streams", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, streams.Load()) })
	mux.HandleFunc("/api/v3/events", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		now := time.Now().UTC().Format(rfc3339)
		fmt.Fprintf(w, `{"result":{"name":"events.stream.start","time":"%s","unique_id":"start%d"}}`+"\n\n", now, time.Now().UnixNano())
		flusher := w.(http.Flusher)
		flusher.Flush()
		streams.Add(1)
		select {
		case <-gate:
		case <-r.Context().Done():
			return
		}
		sending.Lock()
		defer sending.Unlock()
		out := bufio.NewWriterSize(w, 64<<10)
		began := time.Now()
		for ; *count == 0 || sent < *count; sent++ {
			if r.Context().Err() != nil {
				return
			}
			if *rate > 0 {
				due := began.Add(time.Duration(float64(sent) / *rate * 1e9))
				if wait := time.Until(due); wait > 0 {
					out.Flush()
					flusher.Flush()
					time.Sleep(wait)
				}
			}
			if write(out, recorded[sent%len(recorded)], sent) != nil {
				return
			}
		}
		out.Flush()
		flusher.Flush()
		<-r.Context().Done()
	})
	serve(mux)
}

func write(out *bufio.Writer, each frame, n int) error {
	now := time.Now().UTC()
	out.Write(each.head)
	out.WriteString(`"time":"` + now.Format(rfc3339) + `"`)
	out.Write(each.middle)
	out.WriteString(`"unique_id":"B` + strconv.FormatInt(now.UnixNano(), 10) + "N" + strconv.Itoa(n) + `"`)
	out.Write(each.tail)
	_, err := out.WriteString("\n\n")
	return err
}
