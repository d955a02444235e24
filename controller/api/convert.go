package api

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/circuitseal/circuitseal/controller/document"
	"github.com/circuitseal/circuitseal/controller/model"
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

// selected are the keys of some kinds, a customer and a name, where empty means
// any, in the order of kinds, customers and names.
func selected(docs map[model.Key]model.Document, kinds []model.Kind, customer, name string) []model.Key {
	var keys []model.Key
	for k := range docs {
		if slices.Contains(kinds, k.Kind) && (customer == "" || k.Customer == customer) && (name == "" || k.Name == name) {
			keys = append(keys, k)
		}
	}
	slices.SortFunc(keys, func(a, b model.Key) int {
		return cmp.Or(
			cmp.Compare(slices.Index(kinds, a.Kind), slices.Index(kinds, b.Kind)),
			cmp.Compare(a.Customer, b.Customer), cmp.Compare(a.Name, b.Name))
	})
	return keys
}

func documentToWire(d model.Document) (*v1.Document, error) {
	b, err := document.Encode(d.Spec)
	if err != nil {
		return nil, fmt.Errorf("show %s: %w", d.Key, err)
	}
	spec := &structpb.Struct{}
	if err := spec.UnmarshalJSON(b); err != nil {
		return nil, fmt.Errorf("show %s: %w", d.Key, err)
	}
	return &v1.Document{
		ApiVersion: model.APIVersion, Kind: string(d.Key.Kind), Customer: d.Key.Customer, Name: d.Key.Name,
		Revision: d.Revision, Spec: spec,
	}, nil
}

func problemsToWire(problems []model.Problem) *v1.InvalidDocuments {
	w := &v1.InvalidDocuments{}
	for _, p := range problems[:min(len(problems), maxProblems)] {
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
	count := fmt.Sprintf("%d problems", len(problems))
	if len(problems) == 1 {
		count = "1 problem"
	}
	return withProblems(connect.CodeInvalidArgument, "the documents are not valid: "+count+"; nothing was changed", problems)
}

// referenced is the answer to a delete that would leave others broken.
func referenced(key model.Key, broken []model.Problem) error {
	var names []string
	for _, p := range broken {
		name := p.Document
		if p.Field != "" {
			name += " (" + p.Field + ")"
		}
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	more := ""
	if n := len(names) - maxNamed; n > 0 {
		names = names[:maxNamed]
		more = fmt.Sprintf(" and %d more", n)
	}
	return withProblems(connect.CodeFailedPrecondition,
		fmt.Sprintf("%s is in use by %s%s; delete or change these first", key, strings.Join(names, ", "), more), broken)
}

func withProblems(code connect.Code, message string, problems []model.Problem) error {
	e := connect.NewError(code, errors.New(message))
	detail, err := connect.NewErrorDetail(problemsToWire(problems))
	if err != nil {
		return connect.NewError(connect.CodeInternal, fmt.Errorf("describe what is wrong: %w", err))
	}
	e.AddDetail(detail)
	return e
}
