package api

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/circuitseal/circuitseal/controller/model"
)

// maxElements is how many elements the lists of one message may have together:
// more than the largest status has. An element may take two bytes on the wire
// and two hundred in memory, so a bound on bytes alone bounds little.
const maxElements = 30_000

// codec is connect's own codec of the same name, except that it counts the
// elements of a message before it makes them.
type codec struct{ name string }

// codecs takes the place of connect's.
func codecs() connect.HandlerOption {
	return connect.WithHandlerOptions(
		connect.WithCodec(codec{"proto"}), connect.WithCodec(codec{"json"}), connect.WithCodec(codec{"json; charset=utf-8"}),
	)
}

// Name implements connect.Codec.
func (c codec) Name() string { return c.name }

// Marshal implements connect.Codec.
func (c codec) Marshal(message any) ([]byte, error) {
	m, ok := message.(proto.Message)
	switch {
	case !ok:
		return nil, fmt.Errorf("%T is no message", message)
	case c.name == "proto":
		return proto.Marshal(m)
	}
	return protojson.Marshal(m)
}

// Unmarshal implements connect.Codec.
func (c codec) Unmarshal(b []byte, message any) error {
	m, ok := message.(proto.Message)
	if !ok {
		return fmt.Errorf("%T is no message", message)
	}
	if c.name == "proto" {
		left := maxElements
		if countElements(b, m.ProtoReflect().Descriptor(), &left); left < 0 {
			return errElements
		}
		return proto.Unmarshal(b, m)
	}
	if len(b) == 0 {
		return errors.New("an empty body is no JSON object")
	}
	if countJSONElements(b) > maxElements {
		return errElements
	}
	// Whoever writes JSON by hand may write a field wrong: a filter or a dryRun that
	// is silently left out would do something else than was asked for.
	if err := protojson.Unmarshal(b, m); err != nil {
		return unreadable(err, m.ProtoReflect().Descriptor())
	}
	return nil
}

var unknownField = regexp.MustCompile(`unknown field "([^"]*)"`)

// unreadable says what is wrong with JSON and which field may have been meant.
func unreadable(err error, d protoreflect.MessageDescriptor) error {
	// protojson's white space changes from build to build on purpose.
	text := strings.TrimSpace(strings.TrimPrefix(strings.ReplaceAll(err.Error(), "\u00a0", " "), "proto:"))
	found := unknownField.FindStringSubmatch(text)
	if found == nil {
		return fmt.Errorf("the body does not fit %s: %s", d.Name(), text)
	}
	var top []string
	for i := range d.Fields().Len() {
		top = append(top, d.Fields().Get(i).JSONName())
	}
	hint := "it has " + strings.Join(top, ", ")
	if len(top) == 0 {
		hint = "it has no fields"
	}
	if near := model.Nearest(found[1], fieldNames(d, map[protoreflect.FullName]bool{})); near != "" {
		hint = fmt.Sprintf("did you mean %q?", near)
	}
	return fmt.Errorf("the body does not fit %s: %s; %s", d.Name(), text, hint)
}

// fieldNames are those of a message and of what is in it, as JSON has them.
func fieldNames(d protoreflect.MessageDescriptor, seen map[protoreflect.FullName]bool) []string {
	if seen[d.FullName()] {
		return nil
	}
	seen[d.FullName()] = true
	var all []string
	for i := range d.Fields().Len() {
		f := d.Fields().Get(i)
		all = append(all, f.JSONName())
		if m := f.Message(); m != nil {
			all = append(all, fieldNames(m, seen)...)
		}
	}
	return all
}

var errElements = fmt.Errorf("the lists of the message have more than %d elements together; send fewer at a time", maxElements)

// countElements takes the elements of repeated fields off what is left. What is
// malformed is for Unmarshal to say.
func countElements(b []byte, d protoreflect.MessageDescriptor, left *int) {
	for len(b) > 0 && *left >= 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return
		}
		b = b[n:]
		f := d.Fields().ByNumber(number)
		if f != nil && f.IsList() {
			*left--
		}
		if f != nil && f.Message() != nil && kind == protowire.BytesType {
			inner, n := protowire.ConsumeBytes(b)
			if n < 0 {
				return
			}
			countElements(inner, f.Message(), left)
			b = b[n:]
			continue
		}
		if n = protowire.ConsumeFieldValue(number, kind, b); n < 0 {
			return
		}
		b = b[n:]
	}
}

// countJSONElements counts the elements of all arrays of a text.
func countJSONElements(b []byte) int {
	count := 0
	var open []byte
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case '"':
			for i++; i < len(b) && b[i] != '"'; i++ {
				if b[i] == '\\' {
					i++
				}
			}
		case '{':
			open = append(open, '{')
		case '[':
			open = append(open, '[')
			count++
		case '}', ']':
			open = open[:max(0, len(open)-1)]
		case ',':
			if len(open) > 0 && open[len(open)-1] == '[' {
				count++
			}
		}
	}
	return count
}
