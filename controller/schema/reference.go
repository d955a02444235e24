package schema

import (
	"reflect"
	"strings"

	"github.com/circuitseal/circuitseal/controller/model"
)

// named are fields that name documents of a kind and are not called like it.
var named = map[string]model.Kind{
	"NodeSpec.owner":                model.KindCustomer,
	"SiteRules.inbound":             "SecurityRuleSet",
	"SiteRules.outbound":            "SecurityRuleSet",
	"SecurityRule.sourceSites":      model.KindSite,
	"SecurityRule.destinationSites": model.KindSite,
}

// refersTo is the kind whose documents a field names, or "". A field that is
// called like a kind (encryptionPolicy, circuits) names documents of it.
func refersTo(structure, field string, leaf reflect.Type) string {
	if leaf != reflect.TypeFor[string]() {
		return ""
	}
	kind, ok := named[structure+"."+field]
	if !ok {
		for _, k := range model.Kinds() {
			if strings.EqualFold(field, string(k)) || strings.EqualFold(field, string(k)+"s") {
				kind = k
			}
		}
	}
	if model.NewSpec(kind) == nil {
		return ""
	}
	return string(kind)
}
