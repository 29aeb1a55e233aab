package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"net"
)

// subscribe reads every message of a broker at QoS 0 (MQTT 3.1.1), until the connection ends.
func subscribe(address string, each func([]byte)) error {
	connection, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	defer connection.Close()
	connect := []byte("\x10\x11\x00\x04MQTT\x04\x02\x00\x00\x00\x05count")
	all := []byte("\x82\x06\x00\x01\x00\x01#\x00")
	if _, err := connection.Write(append(connect, all...)); err != nil {
		return err
	}
	in := bufio.NewReaderSize(connection, 256<<10)
	for {
		kind, err := in.ReadByte()
		if err != nil {
			return err
		}
		length, err := binary.ReadUvarint(in) // a "remaining length" is the same encoding
		if err != nil {
			return err
		}
		packet := make([]byte, length)
		if _, err := io.ReadFull(in, packet); err != nil {
			return err
		}
		if kind>>4 == 3 {
			topic := 2 + int(binary.BigEndian.Uint16(packet))
			if topic > len(packet) {
				return errors.New("torn packet")
			}
			each(packet[topic:])
		}
	}
}
