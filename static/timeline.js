/* Time on a job's page: what its parts share. Pure. */
'use strict';
{
/** The instant that is pointed at, and the stretch that is shown. on(fn) is told of every change. */
class TimeView {
	cursor = null; // ms since 1970, or null
	listeners = new Set();

	on(listener) {
		this.listeners.add(listener);
	}

	/** origin: the part that says so. */
	point(ms, origin) {
		if (ms === this.cursor) return;
		this.cursor = ms;
		for (const listener of this.listeners) listener(origin);
	}
}

HB.TimeView = TimeView;
}
