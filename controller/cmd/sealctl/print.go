package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// printJSON prints a message as the API's own JSON, indented. protojson's
// white space changes from build to build on purpose; this does not.
func printJSON(w io.Writer, m proto.Message) error {
	return encode(w, m, func(to *bytes.Buffer, b []byte) error { return json.Indent(to, b, "", "  ") })
}

// printJSONLine is printJSON on one line.
func printJSONLine(w io.Writer, m proto.Message) error { return encode(w, m, json.Compact) }

func encode(w io.Writer, m proto.Message, layout func(*bytes.Buffer, []byte) error) error {
	b, err := protojson.MarshalOptions{EmitUnpopulated: true}.Marshal(m)
	if err != nil {
		return fmt.Errorf("print answer: %w", err)
	}
	var out bytes.Buffer
	if err := layout(&out, b); err != nil {
		return fmt.Errorf("print answer: %w", err)
	}
	out.WriteByte('\n')
	_, err = out.WriteTo(w)
	return err
}

// table lays out rows under a head, columns apart by two spaces. Cells are
// foreign text.
type table struct{ rows [][]string }

func newTable(head ...string) *table { return &table{rows: [][]string{head}} }

func (t *table) add(cells ...string) {
	for i, c := range cells {
		if cells[i] = line(c); c == "" {
			cells[i] = "-"
		}
	}
	t.rows = append(t.rows, cells)
}

func (t *table) print(w io.Writer) error {
	widths := make([]int, len(t.rows[0]))
	for _, row := range t.rows {
		for i, c := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(c))
		}
	}
	var b strings.Builder
	for _, row := range t.rows {
		for i, c := range row {
			b.WriteString(c)
			if i < len(row)-1 {
				b.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c)+2))
			}
		}
		b.WriteByte('\n')
	}
	_, err := io.WriteString(w, b.String())
	return err
}
