# Writes tests/golden/groups_gap.json: facts about every group of order <= 63 from GAP and its small groups library.
#
#     gap -q tests/golden/make_groups_gap.g > tests/golden/groups_gap.json
#
# (Debian: apt-get install gap-core gap-smallgrp gap-smallgrp-extra; made with GAP 4.12.1, SmallGrp 1.5.1; 1 minute.)
# One object a group: its number, GAP's structure description, generating permutations (images of 0..d-1) and
# invariants. "characters" lists [degree, Frobenius-Schur indicator, conductor], sorted.
SetPrintFormattingStatus("*stdout*", false);

JsonList := function(list)
  local text, i;
  if IsInt(list) then return String(list); fi;
  text := "[";
  for i in [1..Length(list)] do
    if i > 1 then Append(text, ","); fi;
    Append(text, JsonList(list[i]));
  od;
  Append(text, "]");
  return text;
end;

ImageList := function(g, degree)
  return List([1..degree], i -> i^g - 1);
end;

PrintGroup := function(order, i)
  local group, perm, degree, table, irr, indicators, best, trial, try, series;
  group := SmallGroup(order, i);
  perm := Image(IsomorphismPermGroup(group));
  best := perm;
  for try in [1..5] do
    trial := Image(SmallerDegreePermutationRepresentation(perm));
    if LargestMovedPoint(trial) < LargestMovedPoint(best) then best := trial; fi;
  od;
  perm := best;
  degree := Maximum(1, LargestMovedPoint(perm));
  table := CharacterTable(group);
  irr := Irr(table);
  indicators := Indicator(table, irr, 2);
  series := DerivedSeriesOfGroup(group);
  Print("  {\"id\": \"", order, ".", i, "\", \"name\": \"", StructureDescription(group), "\",\n");
  Print("   \"permutations\": ", JsonList(List(SmallGeneratingSet(perm), g -> ImageList(g, degree))), ",\n");
  Print("   \"class_number\": ", NrConjugacyClasses(group));
  Print(", \"class_sizes\": ", JsonList(SortedList(SizesConjugacyClasses(table))));
  Print(", \"element_orders\": ", JsonList(Collected(List(Elements(group), Order))));
  Print(",\n   \"abelian_invariants\": ", JsonList(SortedList(AbelianInvariants(group))));
  Print(", \"centre_order\": ", Size(Centre(group)));
  Print(", \"derived_orders\": ", JsonList(List(series, Size)));
  Print(", \"nilpotency_class\": ");
  if IsNilpotentGroup(group) then Print(NilpotencyClassOfGroup(group)); else Print("null"); fi;
  Print(",\n   \"subgroup_number\": ", Sum(ConjugacyClassesSubgroups(group), Size));
  Print(", \"subgroup_class_number\": ", Length(ConjugacyClassesSubgroups(group)));
  Print(", \"normal_subgroup_number\": ", Length(NormalSubgroups(group)));
  Print(", \"automorphisms\": ", Size(AutomorphismGroup(group)));
  Print(",\n   \"characters\": ", JsonList(SortedList(
    List([1..Length(irr)], j -> [irr[j][1], indicators[j], Conductor(irr[j])]))), "}");
end;

Print("{\"made_by\": \"tests/golden/make_groups_gap.g\", \"gap\": \"", GAPInfo.Version, "\", \"smallgrp\": \"",
  GAPInfo.PackagesInfo.smallgrp[1].Version, "\", \"groups\": [\n");
for order in [1..63] do
  for i in [1..NumberSmallGroups(order)] do
    if order > 1 then Print(",\n"); fi;
    PrintGroup(order, i);
  od;
od;
Print("\n]}\n");
QUIT;
