package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"io"
	"log"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"
)

var marker = []byte(`"unique_id":"B`)

// Counted is what has come: events by their ids, wherever those stand in a body.
type counted struct {
	sync.Mutex
	requests, events int
	first, last      time.Time
	ages             []time.Duration
	seen             map[string]struct{}
}

func (c *counted) body(content []byte) {
	now := time.Now()
	c.Lock()
	defer c.Unlock()
	c.requests++
	for {
		at := bytes.Index(content, marker)
		if at < 0 {
			return
		}
		content = content[at+len(marker):]
		end := bytes.IndexByte(content, '"')
		if end < 0 {
			return
		}
		c.event(string(content[:end]), now)
	}
}

func (c *counted) event(id string, now time.Time) {
	if c.events == 0 {
		c.first = now
	}
	c.last = now
	c.events++
	c.seen[id] = struct{}{}
	if made, err := strconv.ParseInt(id[:19], 10, 64); err == nil {
		c.ages = append(c.ages, now.Sub(time.Unix(0, made)))
	}
}

func (c *counted) reset() {
	c.Lock()
	defer c.Unlock()
	c.requests, c.events, c.ages, c.seen = 0, 0, nil, map[string]struct{}{}
}

func (c *counted) stats(w http.ResponseWriter, _ *http.Request) {
	c.Lock()
	defer c.Unlock()
	ages := slices.Clone(c.ages)
	slices.Sort(ages)
	at := func(part float64) float64 {
		if len(ages) == 0 {
			return 0
		}
		return float64(ages[int(part*float64(len(ages)-1))]) / 1e6
	}
	_ = json.NewEncoder(w).Encode(map[string]any{
		"requests": c.requests, "events": c.events, "distinct": len(c.seen),
		"seconds": c.last.Sub(c.first).Seconds(), "p50_ms": at(0.5), "p99_ms": at(0.99),
	})
}

func receive(arguments []string) {
	flags := flag.NewFlagSet("receive", flag.ExitOnError)
	broker := flags.String("mqtt", "", "subscribe to everything at this broker")
	_ = flags.Parse(arguments)
	got := &counted{seen: map[string]struct{}{}}
	if *broker != "" {
		go func() { log.Fatal(subscribe(*broker, got.body)) }()
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/stats", got.stats)
	mux.HandleFunc("/reset", func(http.ResponseWriter, *http.Request) { got.reset() })
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		content, err := io.ReadAll(r.Body)
		if err == nil {
			got.body(content)
		}
		w.WriteHeader(http.StatusNoContent)
	})
	serve(mux)
}
