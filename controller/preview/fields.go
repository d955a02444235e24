package preview

import (
	"encoding"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// Field is one thing that is another one in a document or in a state.
type Field struct {
	// Path names it: spec.pathMTU in a document, "peer key" in a state.
	Path string
	// Old and New are what it was and is, "" for nothing.
	Old, New string
	// Lost and Gained are what a list lost and gained, where it is one.
	Lost, Gained []string
	// LeftOut is how many of Lost and Gained are not listed, where lists are
	// bounded.
	LeftOut int
}

// notShown stands for a value that is another one and whose text does not say
// so: a secret.
const notShown = "(not shown)"

// fields compares values of one type by reflection, so that what is added to it
// is compared, too, and needs no line here.
type fields struct {
	// join names a field of a struct by its path.
	join func(path string, f reflect.StructField) string
	// apart are structs that are objects of their own and compared elsewhere.
	apart func(reflect.Type) bool
	found []Field
}

func (d *fields) compare(path string, a, b reflect.Value) {
	if reflect.DeepEqual(a.Interface(), b.Interface()) {
		return
	}
	t := a.Type()
	switch {
	case isLeaf(t):
		d.add(Field{Path: path, Old: show(a), New: show(b)})
	case t.Kind() == reflect.Pointer:
		d.compare(path, pointed(a), pointed(b))
	case t.Kind() == reflect.Struct:
		for f, x := range a.Fields() {
			if f.IsExported() {
				d.compare(d.join(path, f), x, b.FieldByIndex(f.Index))
			}
		}
	case t.Kind() == reflect.Slice && d.apart != nil && d.apart(t.Elem()):
	case t.Kind() == reflect.Slice:
		d.list(path, a, b)
	default:
		d.add(Field{Path: path, Old: show(a), New: show(b)})
	}
}

func (d *fields) add(f Field) {
	if f.Old == f.New && f.Lost == nil && f.Gained == nil {
		f.Old, f.New = notShown, notShown
	}
	d.found = append(d.found, f)
}

// list compares lists. Structs in them are known by their first field where
// that tells all of them apart, and compared one by one.
func (d *fields) list(path string, a, b reflect.Value) {
	old, now := elements(a), elements(b)
	keyed := old.unique && now.unique
	f := Field{Path: path}
	for i, key := range old.keys {
		j, ok := now.at[key]
		switch {
		case keyed && ok:
			d.compare(path+"["+key+"]", a.Index(i), b.Index(j))
		case !ok:
			f.Lost = append(f.Lost, show(a.Index(i)))
		}
	}
	for i, key := range now.keys {
		if _, ok := old.at[key]; !ok {
			f.Gained = append(f.Gained, show(b.Index(i)))
		}
	}
	switch {
	case f.Lost != nil || f.Gained != nil:
		d.add(f)
	case !keyed || !slices.Equal(old.keys, now.keys):
		d.add(Field{Path: path, Old: show(a), New: show(b)})
	}
}

// listed is what tells the elements of a list apart.
type listed struct {
	keys   []string
	at     map[string]int
	unique bool
}

func elements(v reflect.Value) listed {
	l := listed{at: map[string]int{}, unique: true}
	for i := range v.Len() {
		e := v.Index(i)
		if e.Kind() == reflect.Struct && !isLeaf(e.Type()) && e.NumField() > 0 {
			e = e.Field(0)
		}
		key := show(e)
		if _, twice := l.at[key]; twice {
			l.unique = false
		}
		l.keys, l.at[key] = append(l.keys, key), i
	}
	return l
}

// pointed is what a pointer leads to, the zero value for nil.
func pointed(v reflect.Value) reflect.Value {
	if v.IsNil() {
		return reflect.Zero(v.Type().Elem())
	}
	return v.Elem()
}

var (
	stringer = reflect.TypeFor[fmt.Stringer]()
	texter   = reflect.TypeFor[encoding.TextMarshaler]()
)

// isLeaf is true of types that say themselves in a word.
func isLeaf(t reflect.Type) bool {
	if t.Implements(stringer) || t.Implements(texter) {
		return true
	}
	switch t.Kind() {
	case reflect.Struct, reflect.Slice, reflect.Array, reflect.Map, reflect.Pointer, reflect.Interface:
		return false
	default:
		return true
	}
}

// show is a value as text; nothing for the zero value, and nothing of what has
// bytes and does not say how to show them.
func show(v reflect.Value) string {
	t := v.Type()
	switch {
	case v.IsZero():
		return ""
	case !v.CanInterface():
		return notShown
	case t.Implements(stringer):
		return fmt.Sprint(v.Interface())
	case t.Kind() == reflect.String:
		return v.String()
	case isLeaf(t):
		return fmt.Sprint(v.Interface())
	}
	switch t.Kind() {
	case reflect.Pointer, reflect.Interface:
		return show(v.Elem())
	case reflect.Slice, reflect.Array:
		if t.Elem().Kind() == reflect.Uint8 {
			return notShown
		}
		var parts []string
		for i := range v.Len() {
			parts = append(parts, show(v.Index(i)))
		}
		return strings.Join(parts, ", ")
	case reflect.Struct:
		var parts []string
		for f, x := range v.Fields() {
			if s := show(x); f.IsExported() && s != "" {
				parts = append(parts, words(f.Name)+" "+s)
			}
		}
		return strings.Join(parts, ", ")
	default:
		return strconv.Itoa(v.Len()) + " entries"
	}
}

// words is a field's name in small words; what is in capitals stays so.
func words(name string) string {
	if name == "WireGuard" || name == "IPsec" {
		return name
	}
	var all []string
	start := 0
	for i := 1; i <= len(name); i++ {
		if i < len(name) && !begins(name, i) {
			continue
		}
		w := name[start:i]
		if len(w) == 1 || !isUpper(w[1]) {
			w = strings.ToLower(w)
		}
		all, start = append(all, w), i
	}
	return strings.Join(all, " ")
}

// begins reports whether a word begins at a place after the first.
func begins(name string, i int) bool {
	return isUpper(name[i]) && (!isUpper(name[i-1]) || i+1 < len(name) && !isUpper(name[i+1]))
}

func isUpper(c byte) bool { return c >= 'A' && c <= 'Z' }

// bounded lists at most so many things that a list lost or gained.
func (f Field) bounded(most int) Field {
	if n := len(f.Lost) - most; n > 0 {
		f.Lost, f.LeftOut = f.Lost[:most], f.LeftOut+n
	}
	if n := len(f.Gained) - most; n > 0 {
		f.Gained, f.LeftOut = f.Gained[:most], f.LeftOut+n
	}
	return f
}
