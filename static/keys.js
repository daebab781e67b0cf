/* Keys: one table, from which both what they do and the list of them come. */
'use strict';
{
const { h } = HB;
const NAMES = { Escape: 'Esc' };

const rows = []; // [where, names, words, run]

const keys = {
	/** more: [names, words, run(event)]. Without `run`, the part that told it listens by itself. */
	add: (where, more) => rows.push(...more.map(([names, ...rest]) => [where, names.split(' '), ...rest])),

	/** Does what a key means in one of these places, if anything. */
	run(places, event) {
		const run = rows.find(([where, names, , run]) => run && places.includes(where) && names.includes(event.key))?.[3];
		run?.(event);
		return Boolean(run);
	},

	/** The list, by place. */
	list: () =>
		[...new Set(rows.map(([where]) => where))].map((place) => {
			const here = rows.filter(([where]) => where === place);
			return h('section', null, h('h3', null, place), h('dl', null, ...here.map(([, names, words]) => [h('dt', null, names.map((name) => h('kbd', null, NAMES[name] ?? name))), h('dd', null, words)]).flat()));
		}),
};

HB.keys = keys;
}
