package api

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/circuitseal/circuitseal/controller/document"
	"github.com/circuitseal/circuitseal/controller/model"
	"github.com/circuitseal/circuitseal/controller/store"
	"github.com/circuitseal/circuitseal/proto/chunk"
	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
)

const (
	// maxProblems bounds the detail of an error.
	maxProblems = 1000
	// maxNamed is how many documents a sentence names.
	maxNamed = 8
)

// parseKind reads a kind in any case, singular or plural.
func parseKind(s string) (model.Kind, error) {
	var words []string
	for _, k := range model.Kinds() {
		singular := string(k)
		plural := singular + "s"
		if stem, ok := strings.CutSuffix(singular, "y"); ok {
			plural = stem + "ies"
		}
		if strings.EqualFold(s, singular) || strings.EqualFold(s, plural) {
			return k, nil
		}
		words = append(words, singular)
	}
	hint := "want one of " + strings.Join(words, ", ")
	if near := model.Nearest(s, words); near != "" {
		hint = fmt.Sprintf("did you mean %s?", near)
	}
	return "", connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("kind: there is no kind \"%s\"; %s", model.Shorten(s), hint))
}

// parseKey reads what names one document; prefix leads to its fields.
func parseKey(prefix, kindText, customer, name string) (model.Key, error) {
	kind, err := parseKind(kindText)
	if err != nil {
		return model.Key{}, err
	}
	if kind.HasCustomer() && customer == "" {
		return model.Key{}, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("%scustomer is required: documents of kind %s belong to a customer", prefix, kind))
	}
	if err := validNames(field{prefix + "customer", customer, false}, field{prefix + "name", name, true}); err != nil {
		return model.Key{}, err
	}
	if !kind.HasCustomer() && customer != "" {
		return model.Key{}, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("%scustomer: documents of kind %s belong to the provider and have no customer; leave it out", prefix, kind))
	}
	return model.Key{Kind: kind, Customer: customer, Name: name}, nil
}

// field is a name in a request.
type field struct {
	path, value string
	required    bool
}

// validNames checks names before anything is looked up by them.
func validNames(fields ...field) error {
	var wrong []string
	for _, f := range fields {
		if f.value == "" && !f.required {
			continue
		}
		if problem, hint := model.ValidName(f.value); problem != "" {
			wrong = append(wrong, fmt.Sprintf("%s %s (got \"%s\"); want %s", f.path, problem, model.Shorten(f.value), hint))
		}
	}
	if wrong == nil {
		return nil
	}
	return connect.NewError(connect.CodeInvalidArgument, errors.New(strings.Join(wrong, "; ")))
}

// selected are the keys of a kind and a customer, where empty means any, in the
// order of customers and names.
func selected(docs map[model.Key]model.Document, kind model.Kind, customer string) []model.Key {
	return filter{[]model.Kind{kind}, customer, ""}.keys(docs)
}

// identityToWire is everything of a document but its spec.
func identityToWire(d model.Document) *v1.Document {
	return &v1.Document{
		ApiVersion: model.APIVersion, Kind: string(d.Key.Kind), Customer: d.Key.Customer, Name: d.Key.Name, Revision: d.Revision,
	}
}

func keyToWire(k model.Key) *v1.DocumentKey {
	return &v1.DocumentKey{Kind: string(k.Kind), Customer: k.Customer, Name: k.Name}
}

func keyFromWire(k *v1.DocumentKey) model.Key {
	return model.Key{Kind: model.Kind(k.GetKind()), Customer: k.GetCustomer(), Name: k.GetName()}
}

// documentToWire is a document and about how large it is. A spec that is too long
// for a message is given by its chunks.
func documentToWire(d model.Document) (w *v1.Document, size int, err error) {
	b, err := document.Encode(d.Spec)
	if err != nil {
		return nil, 0, fmt.Errorf("show %s: %w", d.Key, err)
	}
	w = identityToWire(d)
	if len(b) > store.LongSpec {
		for piece := range chunk.Split(b) {
			sum := chunk.Of(piece)
			w.SpecChunks = append(w.SpecChunks, sum[:])
		}
		return w, len(w.SpecChunks) * len(chunk.Sum{}), nil
	}
	w.Spec = &structpb.Struct{}
	if err := w.Spec.UnmarshalJSON(b); err != nil {
		return nil, 0, fmt.Errorf("show %s: %w", d.Key, err)
	}
	return w, len(b), nil
}

func problemsToWire(problems []model.Problem) *v1.InvalidDocuments {
	shown := problems[:min(len(problems), maxProblems)]
	w := &v1.InvalidDocuments{LeftOut: uint64(len(problems) - len(shown))}
	for _, p := range problems {
		w.LeftOut += uint64(p.LeftOut)
	}
	for _, p := range shown {
		w.Problems = append(w.Problems, &v1.Problem{
			Source: p.Source, Line: uint32(max(0, p.Line)), Document: p.Document, Field: p.Field,
			Value: p.Value, Message: p.Message, Hint: p.Hint,
		})
	}
	return w
}

// invalid is the answer to documents that are not valid: everything wrong with
// them is in its detail.
func invalid(problems []model.Problem) error {
	detail := problemsToWire(problems)
	total := uint64(len(detail.GetProblems())) + detail.GetLeftOut()
	count := fmt.Sprintf("%d problems", total)
	if total == 1 {
		count = "1 problem"
	}
	return withDetail(connect.CodeInvalidArgument, "the documents are not valid: "+count+"; nothing was changed", detail)
}

// inUse is the answer to a delete of what others name.
func inUse(uses []model.Use) error {
	detail := &v1.InUse{LeftOut: uint64(max(0, len(uses)-maxProblems))}
	for _, u := range uses[:min(len(uses), maxProblems)] {
		detail.Uses = append(detail.Uses, &v1.Use{Document: u.From.String(), Field: u.Field, RefersTo: u.To.String()})
	}
	first := uses[0].To
	same := slices.IndexFunc(uses, func(u model.Use) bool { return u.To != first })
	about := uses
	if same > 0 {
		about = uses[:same]
	}
	message := fmt.Sprintf("%s is in use by %s; delete or change these first", first, list(about, func(u model.Use) string {
		return u.From.String() + " (" + u.Field + ")"
	}))
	if n := len(uses) - len(about); n > 0 {
		message += fmt.Sprintf("; %d more references lead to others that were to be deleted", n)
	}
	return withDetail(connect.CodeFailedPrecondition, message, detail)
}

// broken is the answer to a delete that would leave others wrong though none of
// them names what is deleted.
func broken(problems []model.Problem) error {
	return withDetail(connect.CodeFailedPrecondition, "without these documents others are not valid: "+list(problems, func(p model.Problem) string {
		return p.Document + " (" + p.Field + ": " + p.Message + ")"
	}), problemsToWire(problems))
}

// list names the first of some things in a sentence.
func list[T any](all []T, name func(T) string) string {
	var names []string
	for _, x := range all[:min(len(all), maxNamed)] {
		names = append(names, name(x))
	}
	text := strings.Join(names, ", ")
	if n := len(all) - maxNamed; n > 0 {
		text += fmt.Sprintf(" and %d more", n)
	}
	return text
}

// outdated is the answer to documents that were made from a revision which is
// not the current one any more.
func outdated(problems []model.Problem) error {
	return withDetail(connect.CodeAborted, list(problems, func(p model.Problem) string { return p.Document + " " + p.Message })+
		"; nothing was changed; get them again, make the change there, and apply that", problemsToWire(problems))
}

func withDetail(code connect.Code, message string, detail proto.Message) error {
	e := connect.NewError(code, errors.New(message))
	d, err := connect.NewErrorDetail(detail)
	if err != nil {
		return connect.NewError(connect.CodeInternal, fmt.Errorf("describe what is wrong: %w", err))
	}
	e.AddDetail(d)
	return e
}
